"""What the model is shown of an upgrade: placeholders, or the values where its client turned redaction off.

With redaction off, the values go in for the call alone and come out of the answer again, so that nothing but the call
ever holds them. Either way the answer is redacted: a model may write a personal value that nobody gave it.
"""

from shared.contracts.upgrade_tasks import SealedText, UpgradeTask
from shared.privacy.placeholders import restore
from shared.privacy.redaction import PlaceholderMap, redact
from shared.privacy.sealing import Vault


class ModelView:
    """The two directions between the pipeline's redacted text and the model's, for one call."""

    def __init__(self, task: UpgradeTask, vault: Vault) -> None:
        """Raises SealBroken when the task's map cannot be opened."""
        self._task = task
        self._vault = vault
        self._reveals = task.sealed_pii is not None and not task.options.enable_pii_redaction
        if self._reveals and task.sealed_pii is not None:
            opened = vault.open(task.sealed_pii, tenant_id=task.tenant_id, subject_id=task.upgrade_id)
            self._placeholders = PlaceholderMap.from_json(opened)
            for kind, number in task.placeholder_counts.items():
                self._placeholders.keep_clear_of(kind, number)
        else:
            self._placeholders = PlaceholderMap(task.placeholder_counts)
        self._values = self._placeholders.values()

    def reveal(self, text: str) -> str:
        """Pipeline text as the model is to see it."""
        return restore(text, self._values) if self._values else text

    def conceal(self, text: str) -> str:
        """Model text as the pipeline may hold it."""
        if self._reveals:
            return redact(text, self._placeholders, every_known_value=True)
        return redact(text, self._placeholders, redacted_before=True)

    def sealed_additions(self) -> SealedText | None:
        """The map with what `conceal` had to add to it, sealed for the gateway; None when it added nothing."""
        if len(self._placeholders) == len(self._values):
            return None
        return self._vault.seal(
            self._placeholders.to_json(), tenant_id=self._task.tenant_id, subject_id=self._task.upgrade_id
        )

    def placeholder_counts(self) -> dict[str, int]:
        """The highest number in use per kind, additions included."""
        return self._placeholders.counts()
