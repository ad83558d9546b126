"""The services of the stack, in the order in which an upgrade passes them. They are stopped in this order too."""

SERVICES: tuple[str, ...] = ("gateway", "summarizer", "rag", "upgrader", "usage")
