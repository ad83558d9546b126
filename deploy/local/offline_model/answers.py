"""What the rules answer with; the field names are those of the structured outputs."""

from dataclasses import dataclass, field


@dataclass
class Rewrite:
    """A rewritten prompt."""

    upgraded_prompt: str
    reasoning: str
    missing_questions: list[str] = field(default_factory=list)
    confidence: float = 0.5
    cited_documents: list[int] = field(default_factory=list)


@dataclass
class Summary:
    """What a conversation comes down to."""

    goal: str = ""
    facts: list[str] = field(default_factory=list)
    constraints: list[str] = field(default_factory=list)
    decisions: list[str] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)
