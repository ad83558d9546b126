"""The gateway's settings: an invalid one stops the start with a line that names it."""

import base64

import pytest

from services.gateway.settings import GatewaySettings
from shared.service.settings import load_settings

GOOD = {
    "VAULT_KEY": base64.b64encode(b"v" * 32).decode(),
    "REDIS_URL": "redis://127.0.0.1:6379/0",
    "INTERNAL_TOKEN": "token",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in GOOD.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_defaults(environment: pytest.MonkeyPatch) -> None:
    settings = load_settings(GatewaySettings)
    assert (settings.gateway_host, settings.gateway_port) == ("127.0.0.1", 8080)
    assert settings.upgrade_deadline_seconds == 60
    assert settings.result_retention_days == 30
    assert settings.allowed_origins == []


def test_origins(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("CORS_ALLOWED_ORIGINS", "https://a.example, http://localhost:3000")
    assert load_settings(GatewaySettings).allowed_origins == ["https://a.example", "http://localhost:3000"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GATEWAY_PORT", "0x"),
        ("GATEWAY_PORT", "70000"),
        ("VAULT_KEY", "short"),
        ("VAULT_KEY", None),
        ("INTERNAL_TOKEN", None),
        ("CORS_ALLOWED_ORIGINS", "example.net"),
        ("CORS_ALLOWED_ORIGINS", "https://example.org/path"),
        ("UPGRADE_DEADLINE_SECONDS", "-1"),
    ],
)
def test_a_wrong_setting_is_named(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str | None
) -> None:
    if value is None:
        environment.delenv(name)
    else:
        environment.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        load_settings(GatewaySettings)
    assert end.value.code == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert name in errors[0]
    assert value is None or value not in errors[0]
