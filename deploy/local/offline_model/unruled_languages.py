"""Structured prompts in languages without rules: the unchanged prompt under headings in its language."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from deploy.local.offline_model.documents import Finding

NO_RULES = "There are no rules for the language of this prompt, so its words were left as they are."


@dataclass(frozen=True)
class UnruledLanguage:
    """Phrases of one language. `headings` are the five of a structured prompt, in order."""

    headings: list[str]
    role: str
    no_context: str
    answer_in: str
    honest: str
    format: str
    known: str
    documents: str
    reasoning: str

    def written(self, prompt: str, facts: Sequence[str], findings: Sequence[Finding], limits: Sequence[str]) -> str:
        """Returns the prompt under the five headings."""
        context = [self.known, *(f"- {fact}" for fact in facts)] if facts else []
        if findings:
            context += [self.documents]
            context += [f"- [{finding.number}] {finding.title}: {finding.sentence}" for finding in findings]
        constraints = [f"- {limit}" for limit in [*limits, self.answer_in, self.honest]]
        bodies = [self.role, prompt, "\n".join(context) or self.no_context, "\n".join(constraints), self.format]
        return "\n\n".join(f"{heading}\n{body}" for heading, body in zip(self.headings, bodies, strict=True))


@cache
def unruled_language(code: str) -> UnruledLanguage | None:
    """Returns the phrases of a BCP 47 tag's language; None when there are none."""
    content = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    primary = code.lower().replace("_", "-").split("-")[0]
    return UnruledLanguage(**content[primary]) if primary in content else None
