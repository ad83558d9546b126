"""From a class to a strict schema, and from a model's text back to the class."""

import pytest
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from shared.llm.dialect import ChatMessage, ChatRequest, Dialect, schema_name, strict_schema
from shared.llm.lenient_json import InvalidOutput, read_output


class Item(BaseModel):
    name: str = Field(min_length=1, description="what it is")
    title: str | None = None


class ShoppingList(BaseModel):
    items: list[Item]
    total: float = Field(default=0.0, ge=0)


class CamelCased(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel)

    two_words: str


@pytest.mark.parametrize(
    ("output", "name"), [(Item, "item"), (ShoppingList, "shopping_list"), (CamelCased, "camel_cased")]
)
def test_a_schema_is_named_after_its_class(output: type[BaseModel], name: str) -> None:
    assert schema_name(output) == name


def test_a_strict_schema_requires_every_field_and_allows_no_others() -> None:
    schema = strict_schema(ShoppingList)

    assert schema["required"] == ["items", "total"]
    assert schema["additionalProperties"] is False
    item = schema["$defs"]["Item"]
    assert item["required"] == ["name", "title"]
    assert item["additionalProperties"] is False
    assert item["properties"]["name"] == {"type": "string", "description": "what it is"}
    assert "default" not in schema["properties"]["total"]


def test_field_names_on_the_wire_are_those_of_the_class() -> None:
    assert strict_schema(CamelCased)["required"] == ["two_words"]
    assert read_output('{"two_words": "x"}', CamelCased).two_words == "x"


@pytest.mark.parametrize(
    "text",
    [
        '{"items": [], "total": 1}',
        '```json\n{"items": [], "total": 1}\n```',
        '```\n{"items": [], "total": 1}```',
        'Sure!\n{"items": [], "total": 1}',
        '{"items": [], "total": 1}\nAnything else?',
    ],
)
def test_an_object_is_found_in_what_surrounds_it(text: str) -> None:
    assert read_output(text, ShoppingList).total == 1


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("no json at all", "no JSON object"),
        ('{"items": "', "no object with items"),
        ('{"items": [{"name": ""}], "total": -1}', "items.0.name: string_too_short"),
        ("[]", "no JSON object"),
        ('{"secret": "abc"}', "no object with items"),
    ],
)
def test_the_hint_names_the_fault_and_quotes_nothing(text: str, hint: str) -> None:
    with pytest.raises(InvalidOutput) as fault:
        read_output(text, ShoppingList)

    assert hint in fault.value.hint
    assert "abc" not in fault.value.hint


def test_a_dialect_gives_up_one_feature_at_a_time() -> None:
    dialect = Dialect()
    request = ChatRequest("m", [ChatMessage("user", "x")], ShoppingList, 10, 0.5)

    first = dialect.chat_body(request)
    assert dialect.learn(first, "response_format of type json_schema is not supported")
    assert dialect.learn(first, "response_format of type json_schema is not supported")
    second = dialect.chat_body(request)
    assert second["response_format"] == {"type": "json_object"}
    assert "JSON" in second["messages"][0]["content"]
    assert dialect.learn(second, "Response_Format is unknown")
    assert "response_format" not in dialect.chat_body(request)
    assert not dialect.learn(dialect.chat_body(request), "response_format is unknown")
    assert not dialect.learn(first | {"response_format": first["response_format"]}, "some other fault")
