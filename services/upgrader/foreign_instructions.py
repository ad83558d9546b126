"""Retrieved text is data: an instruction that only it contained must not survive in the rewritten prompt."""

from shared.privacy.injection import remove, scan


def remove_foreign_instructions(upgraded: str, own_words: str) -> tuple[str, bool]:
    """`upgraded` without instructions to the model that the user's own words do not hold; whether any was removed."""
    if not scan(upgraded):
        return upgraded, False
    own_rules = {finding.rule for finding in scan(own_words)}
    if all(finding.rule in own_rules for finding in scan(upgraded)):
        return upgraded, False
    cleaned, findings = remove(upgraded)
    return cleaned, bool(findings)
