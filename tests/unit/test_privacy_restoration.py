"""Restoring values, and checking how an answer uses placeholders."""

from shared.privacy.placeholders import PlaceholderReport, check_placeholders, restore


def test_values_are_restored_once_and_unknown_placeholders_stay() -> None:
    values = {"<EMAIL_1>": "<PHONE_1>", "<PHONE_1>": r"\1 +49 30"}
    assert restore("<EMAIL_1> <PHONE_1> <CARD_1>", values) == r"<PHONE_1> \1 +49 30 <CARD_1>"


def test_a_longer_number_is_not_matched_by_its_prefix() -> None:
    assert restore("<EMAIL_12> <EMAIL_1>2", {"<EMAIL_1>": "a"}) == "<EMAIL_12> a2"


def test_a_faithful_answer_has_an_empty_report() -> None:
    report = check_placeholders("Mail <EMAIL_1> and <EMAIL_2>.", "To: <EMAIL_2>, <EMAIL_1>")
    assert report == PlaceholderReport()
    assert not report


def test_dropped_invented_and_doubled_are_distinguished() -> None:
    report = check_placeholders(
        "<EMAIL_1> <PHONE_1> <CARD_1>",
        "<EMAIL_1> <EMAIL_1> <PHONE_1> <EMAIL_9> <IP_1> <EMAIL_9>",
        known=["<IP_1>", "<IP_2>"],
    )
    assert report == PlaceholderReport(dropped=("<CARD_1>",), invented=("<EMAIL_9>",), doubled=("<EMAIL_1>",))
    assert report


def test_one_more_mention_among_several_is_not_doubled() -> None:
    assert check_placeholders("<IP_1> <IP_1>", "<IP_1> <IP_1> <IP_1>").doubled == ()
    assert check_placeholders("<IP_1> <IP_1>", "<IP_1> <IP_1> <IP_1> <IP_1>").doubled == ("<IP_1>",)


def test_placeholders_of_the_conversation_are_optional() -> None:
    assert not check_placeholders("shorter", "Mail <EMAIL_1>, yes <EMAIL_1>", known="I am <EMAIL_1> or <EMAIL_2>")


def test_expected_placeholders_may_be_a_list() -> None:
    assert check_placeholders(["<EMAIL_1>", "<EMAIL_2>"], "<EMAIL_2>").dropped == ("<EMAIL_1>",)
