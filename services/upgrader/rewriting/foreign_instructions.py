"""Removes instructions to the model that stood only in retrieved text: such text is data."""

from functools import cached_property

from shared.privacy.injection import remove, scan


class ForeignInstructions:
    """Tells instructions that the user's own words hold from those that came from elsewhere."""

    def __init__(self, own_words: str) -> None:
        self._own_words = own_words

    def are_in(self, text: str) -> bool:
        """Whether `text` instructs the model in a way that the user's words do not."""
        findings = scan(text)
        return bool(findings) and not all(finding.rule in self._own_rules for finding in findings)

    def removed_from(self, text: str) -> str:
        """`text` without the sentences that instruct the model; unchanged when the user gave all instructions in it."""
        return remove(text)[0] if self.are_in(text) else text

    @cached_property
    def _own_rules(self) -> set[str]:
        """Found when first needed: a conversation may be long, and few answers hold any instruction."""
        return {finding.rule for finding in scan(self._own_words)}
