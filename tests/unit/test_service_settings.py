import pytest
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from shared.service.settings import ObservabilitySettings, load_settings


class ExampleSettings(ObservabilitySettings):
    model_config = SettingsConfigDict(env_prefix="EXAMPLE_")

    port: int = Field(default=0, ge=0, le=65535)
    vault_key: SecretStr = Field(validation_alias="VAULT_KEY")
    sizes: list[int] = []

    @field_validator("vault_key")
    @classmethod
    def _long_enough(cls, value: SecretStr) -> SecretStr:
        if len(value.get_secret_value()) < 8:
            raise ValueError("must have at least 8 characters")
        return value


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
    for name in ("LOG_LEVEL", "SENTRY_DSN", "OTEL_EXPORTER_OTLP_ENDPOINT", "METRICS_TOKEN", "VAULT_KEY"):
        monkeypatch.delenv(name, raising=False)


def failing_line(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        load_settings(ExampleSettings)
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_reads_environment_and_dotenv(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(".env", "w") as file:
        file.write("VAULT_KEY=long-enough-key\nLOG_LEVEL=DEBUG\nEXAMPLE_PORT=81\n")
    monkeypatch.setenv("LOG_LEVEL", "WARNING")
    settings = load_settings(ExampleSettings)
    assert settings.log_level == "WARNING"
    assert settings.port == 81
    assert settings.shutdown_grace_seconds == 25.0


def test_a_service_prefix_does_not_change_shared_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_KEY", "long-enough-key")
    monkeypatch.setenv("METRICS_TOKEN", "scrape")
    assert load_settings(ExampleSettings).metrics_token == "scrape"


def test_an_empty_setting_counts_as_unset(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SENTRY_DSN", "")
    monkeypatch.setenv("VAULT_KEY", "")
    assert failing_line(capsys) == "wrong setting: VAULT_KEY: is required and not set"


def test_one_line_names_every_wrong_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VAULT_KEY", "long-enough-key")
    monkeypatch.setenv("EXAMPLE_PORT", "99999")
    monkeypatch.setenv("LOG_LEVEL", "LOUD")
    line = failing_line(capsys)
    assert "EXAMPLE_PORT" in line
    assert "LOG_LEVEL" in line


def test_the_value_of_a_secret_is_never_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VAULT_KEY", "hunter2")
    monkeypatch.setenv("SENTRY_DSN", "hunter3")
    line = failing_line(capsys)
    assert "VAULT_KEY: must have at least 8 characters" in line
    assert "SENTRY_DSN: is not a Sentry DSN" in line
    assert "hunter" not in line


def test_a_list_that_is_not_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("VAULT_KEY", "long-enough-key")
    monkeypatch.setenv("EXAMPLE_SIZES", "1;2")
    assert "sizes" in failing_line(capsys)
