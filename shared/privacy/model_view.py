"""What the model is shown of an upgrade: placeholders, or the values where its client turned redaction off.

With redaction on, nothing changes on the way to the model and back. With it off, the values go in for the call alone
and come out of the answer again, so that nothing but the call ever holds them.
"""

from shared.contracts.upgrade_tasks import UpgradeTask
from shared.privacy.redaction import PlaceholderMap, redact
from shared.privacy.restoration import restore
from shared.privacy.sealing import Vault


class ModelView:
    """The two directions between the pipeline's redacted text and the model's."""

    def __init__(self, placeholders: PlaceholderMap | None) -> None:
        self._placeholders = placeholders
        self._values = placeholders.values() if placeholders else {}

    @staticmethod
    def for_task(task: UpgradeTask, vault: Vault) -> "ModelView":
        """The view that the task's options ask for. Raises SealBroken when its map cannot be opened."""
        if task.sealed_pii is None or task.options.enable_pii_redaction:
            return ModelView(None)
        sealed = vault.open(task.sealed_pii, tenant_id=task.tenant_id, subject_id=task.upgrade_id)
        return ModelView(PlaceholderMap.from_json(sealed))

    def reveal(self, text: str) -> str:
        """Pipeline text as the model is to see it."""
        return restore(text, self._values) if self._values else text

    def conceal(self, text: str) -> str:
        """Model text as the pipeline may hold it."""
        if self._placeholders is None:
            return text
        return redact(text, self._placeholders, every_known_value=True)
