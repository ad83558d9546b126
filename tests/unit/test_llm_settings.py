"""Settings of the model: what is taken, what is refused and how it is said."""

import pytest

from shared.llm.settings import ModelSettings
from shared.service.settings import load_settings

NAMES = ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_MODEL", "MODEL_ATTEMPTS")


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path_factory.mktemp("no-env-file"))


def test_a_server_of_ones_own_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:8081/v1")

    settings = load_settings(ModelSettings)

    assert settings.openai_api_key is None
    assert settings.model_requests_per_call == settings.model_attempts + 1


def test_an_empty_address_is_the_vendor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")

    assert load_settings(ModelSettings).openai_base_url is None


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({}, "OPENAI_API_KEY"),
        ({"OPENAI_API_KEY": " "}, "OPENAI_API_KEY"),
        ({"OPENAI_BASE_URL": "ftp://user:hunter2@host"}, "OPENAI_BASE_URL"),
        ({"OPENAI_API_KEY": "sk-test", "MODEL_ATTEMPTS": "0"}, "MODEL_ATTEMPTS"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line_without_its_value(
    values: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(SystemExit) as stopped:
        load_settings(ModelSettings)

    message = capsys.readouterr().err
    assert stopped.value.code == 2
    assert named in message
    assert message.count("\n") == 1
    assert "hunter2" not in message
