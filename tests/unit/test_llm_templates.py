"""What a template may do, what it costs, and what its author is told."""

import pytest

from shared.contracts.prompts import PromptType
from shared.llm.templates import (
    DATA_RULES,
    MAX_RENDERED_CHARACTERS,
    VARIABLES,
    TemplateRefused,
    check_template,
    render_template,
)

WHOLE = "Rewrite it.\n{{ data_rules }}\n{{ contract }}\n"


@pytest.mark.parametrize(
    "source",
    [
        WHOLE,
        WHOLE + "{% if mode == 'full' %}whole{% elif has_documents and not mode_is_set %}short{% else %}x{% endif %}",
        WHOLE + "{{ language | upper }} {{ mode if has_conversation else 'none' }} {{ language ~ '!' }}",
        WHOLE + "{# a comment #}{% raw %}{{ kept }}{% endraw %}",
        WHOLE + "{% for part in ['a', 'b'] %}{{ loop.index }}{{ part }}{% endfor %}",
    ],
)
def test_templates_that_are_fine(source: str) -> None:
    check_template(source, PromptType.UPGRADER)
    check_template(source, PromptType.CUSTOM)


@pytest.mark.parametrize("type_", PromptType)
def test_each_type_has_variables_with_samples(type_: PromptType) -> None:
    required = [variable for variable in VARIABLES[type_] if variable.required]
    check_template("\n".join(f"{{{{ {variable.name} }}}}" for variable in required), type_)
    assert all(variable.meaning for variable in VARIABLES[type_])


@pytest.mark.parametrize(
    ("line", "column", "part"),
    [
        ("{{ ''.__class__ }}", 6, "not allowed"),
        ("{{ mode.__class__.__mro__ }}", 18, "not allowed"),
        ("{% for i in range(1000000000) %}x{% endfor %}", 13, "calls are not allowed"),
        ("{{ 'x' * 1000000000 }}", 1, "mul"),
        ("{{ 2 ** 100000000 }}", 1, "pow"),
        ("{{ '%099999d' % 1 }}", 1, "mod"),
        ("{{ mode | center(100000000) }}", 11, "filter `center`"),
        ("{{ mode | attr('__class__') }}", 11, "filter `attr`"),
        ("{{ mode.upper() }}", 1, "calls are not allowed"),
        ("{{ secret }}", 4, "unknown variable `secret`"),
        ("abc {{ prompt }}", 8, "unknown variable `prompt`"),
        ("{% set x = 1 %}", 1, "assign"),
        ("{% macro m() %}{% endmacro %}", 1, "macro"),
        ("{% include 'etc' %}", 1, "include"),
        ("{% import 'os' as os %}", 1, "import"),
        ("{% if mode %}", 1, "end of template"),
        ("text {{ mode ", 6, "end of"),
        ("text {% nonsense %}", 6, "nonsense"),
        ("{{ [1,2][99] }}", 1, "cannot be rendered"),
        ("{{ has_documents | join }}", 1, "cannot be rendered"),
    ],
)
def test_what_is_refused_names_line_and_column(line: str, column: int, part: str) -> None:
    with pytest.raises(TemplateRefused) as refused:
        check_template(f"{WHOLE}{line}", PromptType.UPGRADER)
    assert part in refused.value.detail.lower() or part in refused.value.detail
    if "cannot be rendered" not in part:
        assert (refused.value.line, refused.value.column) == (4, column)


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("Rewrite it. {{ contract }}", "data_rules"),
        ("Rewrite it. {{ data_rules }}", "contract"),
        ("{{ contract }}{% if false %}{{ data_rules }}{% endif %}", "data_rules"),
        ("Rewrite it, without any variable.", "data_rules"),
    ],
)
def test_what_a_type_needs_has_to_be_in_the_text(source: str, missing: str) -> None:
    with pytest.raises(TemplateRefused, match=missing):
        check_template(source, PromptType.UPGRADER)


def test_length_is_bounded_before_and_after_rendering() -> None:
    with pytest.raises(TemplateRefused, match="at most 32,000 characters"):
        check_template("x" * 1_000_000, PromptType.UPGRADER)
    with pytest.raises(TemplateRefused, match="empty"):
        check_template(" \n", PromptType.UPGRADER)
    with pytest.raises(TemplateRefused, match="more than"):
        render_template("{{ prompt }}" * 30, {"prompt": "y" * (MAX_RENDERED_CHARACTERS // 20)})


def test_loops_are_nested_two_deep_at_most() -> None:
    loops = "{% for a in 'x' %}" * 3 + "{% endfor %}" * 3
    with pytest.raises(TemplateRefused, match="nested at most 2"):
        check_template(WHOLE + loops, PromptType.UPGRADER)


def test_values_are_text_and_never_templates() -> None:
    assert render_template("{{ prompt }}", {"prompt": "{{ data_rules }}"}) == "{{ data_rules }}"
    assert "follow nothing" in render_template(WHOLE, {"data_rules": DATA_RULES, "contract": "c"})
