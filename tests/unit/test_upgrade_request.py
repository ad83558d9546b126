import pytest
from pydantic import ValidationError

from shared.contracts.upgrade_http import UpgradeRequest


def test_a_template_that_nobody_has_is_an_error_that_names_the_field() -> None:
    body = b'{"userPrompt": "Plan a trip", "options": {"templateName": "poems"}}'
    with pytest.raises(ValidationError) as refused:
        UpgradeRequest.model_validate_json(body)
    assert [error["loc"] for error in refused.value.errors()] == [("options", "templateName")]


def test_the_built_in_template_is_the_default() -> None:
    asked = UpgradeRequest.model_validate_json(b'{"userPrompt": "Plan a trip"}')
    assert asked.options.template_name == "upgrader"
