"""Redaction: every kind of value in its usual forms, harmless look-alikes, and lossless restoration."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from shared.contracts.upgrade_tasks import TaskOptions
from shared.privacy.model_view import ModelView
from shared.privacy.placeholders import KINDS, PLACEHOLDER, PlaceholderMap, placeholders_in, restore
from shared.privacy.redaction import KnownValues, find, redact, redact_all
from shared.privacy.sealing import Vault
from shared.privacy.settings import PrivacySettings
from tests.unit.privacy_redaction_cases import FOUND, NOTHING
from tests.unit.upgrade_fixtures import make_task

PEM = (
    "-----BEGIN RSA " + "PRIVATE KEY-----\n"
    "MIIBOgIBAAJBAKj34GkxFhD90vcNLYLInFEX6Ppy1tPf9Cnzj4p4WGeKLs1Pt8Qu\n"
    "KUpRKfFLfRYC9AIKjbJTWit+CqvjWYzvQwECAwEAAQ==\n"
    "-----END RSA " + "PRIVATE KEY-----"
)


@pytest.mark.parametrize(("text", "kind", "value"), FOUND)
def test_exactly_the_whole_value_is_found(text: str, kind: str, value: str) -> None:
    placeholders = PlaceholderMap()
    redacted = redact(text, placeholders)
    assert placeholders.values() == {f"<{kind}_1>": value}
    assert redacted == text.replace(value, f"<{kind}_1>")
    assert restore(redacted, placeholders.values()) == text


@pytest.mark.parametrize("text", NOTHING)
def test_harmless_text_is_unchanged(text: str) -> None:
    placeholders = PlaceholderMap()
    assert redact(text, placeholders) == text
    assert len(placeholders) == 0


def test_a_private_key_is_one_secret_even_without_its_footer() -> None:
    for block in (PEM, PEM[:115]):
        placeholders = PlaceholderMap()
        assert redact(f"My key:\n{block}\nWhy is it refused?", placeholders).startswith("My key:\n<SECRET_1>\nWhy")
        assert placeholders.values() == {"<SECRET_1>": block}


def test_the_same_value_has_the_same_placeholder_across_texts() -> None:
    placeholders = PlaceholderMap()
    first = redact("Ann is ann@example.com, Bob is bob@example.com.", placeholders)
    second = redact("Write to bob@example.com and to Ann@example.com.", placeholders)
    assert first == "Ann is <EMAIL_1>, Bob is <EMAIL_2>."
    assert second == "Write to <EMAIL_2> and to <EMAIL_3>."
    assert placeholders.counts() == {"EMAIL": 3}


def test_a_value_found_in_one_text_is_redacted_in_the_others() -> None:
    placeholders = PlaceholderMap()
    history, prompt = redact_all(["Is 078051120 valid?", "My SSN is 078051120."], placeholders)
    assert history == "Is <NATIONAL_ID_1> valid?"
    assert prompt == "My SSN is <NATIONAL_ID_1>."


def test_a_password_that_is_a_common_word_is_not_replaced_everywhere() -> None:
    placeholders = PlaceholderMap()
    redacted = redact("password: correct\nPlease correct the grammar.", placeholders)
    assert redacted == "password: <SECRET_1>\nPlease correct the grammar."


def test_numbers_in_use_elsewhere_are_not_reused() -> None:
    placeholders = PlaceholderMap(start_after={"EMAIL": 4, "PHONE": 0})
    assert redact("ann@example.com", placeholders) == "<EMAIL_5>"
    assert placeholders.counts() == {"EMAIL": 5}


class TestLiterals:
    """Text of a user that looks like a placeholder is treated as text."""

    def test_a_literal_stays_and_its_number_is_not_reused(self) -> None:
        placeholders = PlaceholderMap()
        redacted = redact("Put <EMAIL_1> where ann@example.com was.", placeholders)
        assert redacted == "Put <EMAIL_1> where <EMAIL_2> was."
        assert restore(redacted, placeholders.values()) == "Put <EMAIL_1> where ann@example.com was."

    def test_a_literal_whose_number_is_taken_gets_its_own_placeholder(self) -> None:
        placeholders = PlaceholderMap()
        first = redact("I am ann@example.com", placeholders)
        second = redact("What does <EMAIL_1> mean?", placeholders)
        assert (first, second) == ("I am <EMAIL_1>", "What does <EMAIL_2> mean?")
        assert restore(second, placeholders.values()) == "What does <EMAIL_1> mean?"

    def test_a_literal_with_the_number_of_another_map_is_replaced(self) -> None:
        placeholders = PlaceholderMap(start_after={"EMAIL": 1})
        redacted = redact("The form says <EMAIL_1>.", placeholders)
        everything = {"<EMAIL_1>": "ann@example.com", **placeholders.values()}
        assert restore(redacted, everything) == "The form says <EMAIL_1>."

    def test_a_literal_with_a_high_number_does_not_raise_later_numbers(self) -> None:
        placeholders = PlaceholderMap()
        redacted = redact("<EMAIL_999999999> ann@example.com", placeholders)
        assert redacted == "<EMAIL_1> <EMAIL_2>"
        assert restore(redacted, placeholders.values()) == "<EMAIL_999999999> ann@example.com"

    def test_other_tags_are_not_placeholders(self) -> None:
        for text in ("<EMAIL_0>", "<EMAIL_01>", "<EMAIL>", "<NAME_1>", "<email_1>", "EMAIL_1"):
            assert redact(text, PlaceholderMap()) == text


VAULT = Vault.from_settings(PrivacySettings(vault_key=SecretStr("A" * 43 + "="), _env_file=None))


def shown_view(placeholders: PlaceholderMap) -> ModelView:
    """Returns the view of an upgrade whose client turned redaction off."""
    task = make_task(options=TaskOptions(enable_pii_redaction=False), placeholder_counts=placeholders.counts())
    sealed = VAULT.seal(placeholders.to_json(), tenant_id=task.tenant_id, subject_id=task.upgrade_id)
    return ModelView(task.model_copy(update={"sealed_pii": sealed}), VAULT)


class TestInsideThePipeline:
    def test_placeholders_are_kept_and_new_values_are_redacted(self) -> None:
        placeholders = PlaceholderMap()
        redact("ann@example.com, PIN: 4821", placeholders)
        answer = "Tell <EMAIL_1> (ann@example.com) the code 4821, and <EMAIL_7> or bob@example.com."
        redacted = redact(answer, placeholders, redacted_before=True, every_known_value=True)
        assert redacted == "Tell <EMAIL_1> (<EMAIL_1>) the code <SECRET_1>, and <EMAIL_7> or <EMAIL_8>."
        assert redact(redacted, placeholders, redacted_before=True) == redacted

    def test_values_shown_to_the_model_are_redacted_in_its_answer(self) -> None:
        placeholders = PlaceholderMap()
        redacted = redact("Mail ann@example.com that the password is swordfish9.", placeholders)
        view = shown_view(placeholders)
        assert view.reveal(redacted) == "Mail ann@example.com that the password is swordfish9."
        assert view.conceal("To: ann@example.com\nIt is swordfish9.") == "To: <EMAIL_1>\nIt is <SECRET_1>."

    def test_a_literal_and_a_value_with_the_same_text_are_distinguished(self) -> None:
        placeholders = PlaceholderMap()
        first = redact("I am ann@example.com.", placeholders)
        second = redact("Explain <EMAIL_1> to me.", placeholders)
        view = shown_view(placeholders)
        for text, shown in ((first, "I am ann@example.com."), (second, "Explain <EMAIL_1> to me.")):
            assert view.reveal(text) == shown
            assert view.conceal(shown) == text

    def test_a_value_invented_by_the_model_is_sealed_for_the_client(self) -> None:
        task = make_task(placeholder_counts={"EMAIL": 2})
        view = ModelView(task, VAULT)
        assert view.reveal("Write to <EMAIL_1>") == "Write to <EMAIL_1>"
        assert view.sealed_additions() is None
        assert view.conceal("To <EMAIL_1>, cc sales@example.org") == "To <EMAIL_1>, cc <EMAIL_3>"
        sealed = view.sealed_additions()
        assert sealed is not None
        opened = VAULT.open(sealed, tenant_id=task.tenant_id, subject_id=task.upgrade_id)
        assert PlaceholderMap.from_json(opened).values() == {"<EMAIL_3>": "sales@example.org"}
        assert view.placeholder_counts() == {"EMAIL": 3}


texts = st.text(max_size=200)
fragments = st.one_of(
    texts,
    st.sampled_from([text for text, _, _ in FOUND] + list(NOTHING) + [PEM]),
    st.builds(lambda kind, number: f"<{kind}_{number}>", st.sampled_from(KINDS), st.integers(0, 1100)),
    st.sampled_from(
        ["<", ">", "<EMAIL_", "1>", "@", "://", ": ", "password", "'", '"', " ", "\n", "0", "İ", "ǆ", "\u0301"]
    ),
)
mixed = st.lists(fragments, max_size=8).map("".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(mixed, min_size=1, max_size=4), st.dictionaries(st.sampled_from(KINDS), st.integers(0, 5)))
def test_restoring_redacted_text_returns_the_original(parts: list[str], start_after: dict[str, int]) -> None:
    placeholders = PlaceholderMap(start_after)
    redacted = [redact(part, placeholders) for part in parts]
    assert [restore(part, placeholders.values()) for part in redacted] == parts
    together = PlaceholderMap(start_after)
    assert [restore(part, together.values()) for part in redact_all(parts, together)] == parts


@settings(max_examples=100, deadline=None)
@given(st.lists(mixed, min_size=1, max_size=3))
@example(["0@0.AA010 0002::010 0002"])
def test_no_distinctive_value_remains(parts: list[str]) -> None:
    placeholders = PlaceholderMap()
    redacted = redact_all(parts, placeholders)
    known = KnownValues(every_length=False)
    for placeholder, value in placeholders.values().items():
        known.add(value, placeholder)
    for text in redacted:
        assert all(PLACEHOLDER.search(text[span.start : span.end]) for span in known.find(text))


@settings(max_examples=100, deadline=None)
@given(mixed)
def test_placeholders_survive_a_second_redaction(text: str) -> None:
    placeholders = PlaceholderMap()
    once = redact(text, placeholders, redacted_before=True)
    twice = iter(placeholders_in(redact(once, placeholders, redacted_before=True)))
    assert all(placeholder in twice for placeholder in placeholders_in(once))


@pytest.mark.parametrize("text", [text for text, _, _ in FOUND])
def test_redaction_is_idempotent(text: str) -> None:
    placeholders = PlaceholderMap()
    once = redact(text, placeholders, redacted_before=True)
    assert redact(once, placeholders, redacted_before=True) == once
    assert redact(once, PlaceholderMap(), redacted_before=True) == once


@settings(max_examples=50, deadline=None)
@given(st.lists(mixed, max_size=3), st.dictionaries(st.sampled_from(KINDS), st.integers(1, 5)))
def test_a_map_survives_json(parts: list[str], start_after: dict[str, int]) -> None:
    placeholders = PlaceholderMap(start_after)
    for part in parts:
        redact(part, placeholders)
    copy = PlaceholderMap.from_json(placeholders.to_json())
    assert copy.values() == placeholders.values()
    assert copy.counts() == placeholders.counts()
    assert redact("new@example.com", copy) == redact("new@example.com", placeholders)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"values": {"x": "y"}, "startAfter": {}, "last": {}}'])
def test_invalid_map_json_is_rejected(text: str) -> None:
    with pytest.raises(ValueError):
        PlaceholderMap.from_json(text)


PROSE = (
    "The quick brown fox jumps over the lazy dog. In 2024 we shipped 12 releases to 3,400 customers; please write to"
    " ann@example.com or call +1 415 555 2671. Our design has three parts: a gateway, a worker and a store, and tokens"
    " are rotated daily. Summarize the following text for beginners, please. "
)
HOSTILE = (
    '1', '@', 'a.', 'a', '1 ', '12-', '1.', '://', '://a:', 'a@b.co ', 'password: ', 'password: x1y2z ',
    '::', 'a:', '(+', '+1', '"', '4111 ', 'A1', 'AB12 ', 'ssn 123-45-6789 ', '<EMAIL_1> ', 'a@a.',
    'token = ', 'sk-', 'İ', '-----BEGIN PRIVATE KEY-----', 'eyJaaaaaaaaaa.', 'DE89 3704 0044 0532 0130 ',
    '10.1.2.3 ', 'call 0123456789 ', '-----BEGIN ', 'bearer ', 'is ', '\n', '\t',
    '(at)', 'a (at) b', 'a(at)b(dot)', '%40', 'a%40b.co ', '(dot)', '&#0', '4111,', '4111\n', '4111/1111_', 'card4',
    '4' * 17 + ',', '\\"', 'password\\": \\"', 'password="\\', '<password>', '<password ', 'password> ', '<', '-',
    '--password ', '--password x1=', ' -u a:', 'curl -u a:b ', ' -p', 'mysql -p1 ', 'with password ', '\u200b',
    'a\u200b',
)  # fmt: skip


def cpu_seconds_for(text: str) -> float:
    """CPU time of this thread, so that other load on the machine does not count."""
    started = time.thread_time()
    find(text)
    return time.thread_time() - started


@pytest.mark.parametrize("piece", HOSTILE)
def test_time_is_linear_in_the_length_of_hostile_text(piece: str) -> None:
    short, long = (piece * 50_000)[:6_250], (piece * 50_000)[:50_000]
    find(short[:2000])
    # Quadratic behaviour would take 64 times as long for 8 times the text. The floor allows for clock resolution.
    once, eight_times = min(cpu_seconds_for(short) for _ in range(3)), min(cpu_seconds_for(long) for _ in range(3))
    assert eight_times <= 40 * max(once, 0.004)
