"""Converts an upgrade's text for a model call and back: with placeholders, or with values if redaction is turned off.

With redaction turned off, values are restored for the model call and redacted again in its answer, so that only the
call itself contains them. In both cases the answer is redacted, because a model may invent personal values.
"""

from shared.contracts.upgrade_tasks import SealedText, UpgradeTask
from shared.privacy.placeholders import PlaceholderMap, restore
from shared.privacy.redaction import redact
from shared.privacy.sealing import Vault


class ModelView:
    """Converts between the pipeline's redacted text and the text of one model call."""

    def __init__(self, task: UpgradeTask, vault: Vault) -> None:
        """Raises SealBroken if the task's sealed map cannot be opened."""
        self._task = task
        self._vault = vault
        sealed = None if task.options.enable_pii_redaction else task.sealed_pii
        self._reveals = sealed is not None
        if sealed is not None:
            opened = vault.open(sealed, tenant_id=task.tenant_id, subject_id=task.upgrade_id)
            self._placeholders = PlaceholderMap.from_json(opened)
            for kind, number in task.placeholder_counts.items():
                self._placeholders.reserve(kind, number)
        else:
            self._placeholders = PlaceholderMap(task.placeholder_counts)
        self._values = self._placeholders.values()

    def reveal(self, text: str) -> str:
        """Returns pipeline text as the model receives it."""
        return restore(text, self._values) if self._values else text

    def conceal(self, text: str) -> str:
        """Returns model text redacted for the pipeline."""
        if self._reveals:
            return redact(text, self._placeholders, every_known_value=True)
        return redact(text, self._placeholders, redacted_before=True)

    def sealed_additions(self) -> SealedText | None:
        """Returns the map, sealed for the gateway, if `conceal` added values to it; else None."""
        if len(self._placeholders) == len(self._values):
            return None
        return self._vault.seal(
            self._placeholders.to_json(), tenant_id=self._task.tenant_id, subject_id=self._task.upgrade_id
        )

    def placeholder_counts(self) -> dict[str, int]:
        """Returns the highest number in use per kind, including additions."""
        return self._placeholders.counts()
