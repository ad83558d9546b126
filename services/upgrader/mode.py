"""Interim."""
def decide_mode(prompt, history):  # type: ignore
    return "contextual" if history and len(prompt) < 60 else "full"
