"""Views of upgrades whose placeholder map can or cannot be opened."""

from pydantic import SecretStr

from services.gateway.upgrades.accepted_record import AcceptedRecord
from services.gateway.upgrades.views import UpgradeViews
from shared.privacy.placeholders import PlaceholderMap
from shared.privacy.redaction import redact
from shared.privacy.sealing import Vault
from shared.privacy.settings import PrivacySettings
from tests.unit.upgrade_fixtures import make_task


def vault(key: str) -> Vault:
    return Vault.from_settings(PrivacySettings(vault_key=SecretStr(key * 43 + "="), _env_file=None))


def record_sealed_by(sealing: Vault) -> AcceptedRecord:
    placeholders = PlaceholderMap()
    task = make_task(redact("Mail ann@example.com", placeholders))
    return AcceptedRecord.from_document(
        {
            "_id": task.upgrade_id,
            "tenantId": task.tenant_id,
            "credentialId": "c",
            "userRef": None,
            "period": task.period,
            "createdAt": task.to_document()["createdAt"],
            "deadline": task.to_document()["deadline"],
            "task": task.to_json().decode(),
            "sealedPii": sealing.seal(
                placeholders.to_json(), tenant_id=task.tenant_id, subject_id=task.upgrade_id
            ).to_document(),
        }
    )


def test_the_values_stand_in_the_view_again() -> None:
    view = UpgradeViews(vault("A")).of(record_sealed_by(vault("A")), None)
    assert (view.status, view.user_prompt) == ("accepted", "Mail ann@example.com")


def test_without_its_key_an_upgrade_has_failed_and_says_so() -> None:
    view = UpgradeViews(vault("B")).of(record_sealed_by(vault("A")), None)
    assert (view.status, view.user_prompt, view.upgraded_prompt) == ("failed", "", None)
    assert view.error is not None
    assert view.error.code == "content_unreadable"
