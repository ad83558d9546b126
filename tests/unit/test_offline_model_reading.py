"""What the offline model extracts from prompts: negations, abbreviations, material, follow-ups and documents."""

import json

import pytest

from deploy.local.offline_model.documents import read_documents, relevant_sentences
from deploy.local.offline_model.languages import language_of
from deploy.local.offline_model.prompt_parts import split_prompt
from deploy.local.offline_model.text_pieces import split_sentences
from tests.unit.offline_model_calls import EMBEDDER, rewrite

CONVERSATION = (
    "user: Write a backup schedule for MySQL on Linux.\n\nassistant: Options:\n1. Nightly dumps\n2. Log shipping"
)


def follow_up(prompt: str, conversation: str = CONVERSATION, language: str = "en", **sections: str) -> str:
    return str(rewrite(prompt, language, "contextual", conversation=conversation, **sections)["upgraded_prompt"])


@pytest.mark.parametrize(
    ("language", "prompt"),
    [
        ("en", "Do not use tables. Write about recursion."),
        ("en", "Write about recursion without a table"),
        ("de", "Schreibe über Rekursion, aber bitte keine Tabelle."),
        ("de", "Schreibe über Rekursion. Tabellen und eine Tabelle bitte nicht."),
        ("fr", "Écris sur la récursivité. N'utilise pas de tableau."),
        ("es", "Escribe sobre la recursividad, sin tabla."),
        ("pt", "Escreva sobre recursão. Não use tabela."),
        ("it", "Scrivi della ricorsione. Non usare una tabella."),
        ("nl", "Schrijf over recursie, gebruik geen tabel."),
        ("vi", "Viết về đệ quy, không dùng bảng."),
    ],
)
def test_a_negated_format_is_not_used(language: str, prompt: str) -> None:
    assert split_prompt(prompt, language_of(language)).format != "table"


def test_a_contrast_ends_a_negation() -> None:
    assert split_prompt("Write about tea, no table but a checklist", language_of("en")).format == "bullets"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Ask Dr. Smith and Mr. Jones of Acme Inc. Berlin vs. Google, e.g. by mail.", 1),
        ("Wir treffen uns in der Hauptstr. 5 mit max. 10 Leuten, z. B. Nr. 7. Danach essen wir.", 2),
        ("Schreibe eine Einladung zur Feier am 12. Dezember, locker.", 1),
        ("Schreibe eine Rede zum 80. Geburtstag. Sie ist kurz.", 2),
        ("Usa máx. 100 palabras.", 1),
        ("Write approx. 500 words. Then stop.", 2),
        ("It costs 5. 3 are left.", 1),
        ("We met at the St. James hall. everybody was there.", 1),
        ("explain dns. no jargon.", 2),
    ],
)
def test_sentences_do_not_end_at_abbreviations(text: str, count: int) -> None:
    assert len(split_sentences(text)) == count


@pytest.mark.parametrize(
    ("head", "given"),
    [
        ("Rewrite this email:", "Hi Bob, I can't come. Sorry. Best, Al"),
        ("Summarize this:", "The cat sat. The dog ran."),
        ("Summarise in french:", "'The cat sat. It was fine.'"),
        ("Reply to the following message:", "Are you coming? We start at 5."),
        (
            "Summarize the following email in 3 bullet points for my boss:",
            "Hi all, the launch moves to May 3 because QA found two blockers. Budget stays at $40k. Thanks, Kim",
        ),
        ("Translate into German, please keep it formal and change no names:", "Hi Bob. See you at 5."),
        (
            "Write a short and friendly answer that declines to the wish of this customer:",
            "I want my money back. It must be today.",
        ),
    ],
)
def test_material_on_the_same_line_stays_whole_and_is_not_asked_for(head: str, given: str) -> None:
    answered = rewrite(f"{head[0].lower()}{head[1:]} {given}")

    assert f"TASK\n{head}\n{given}\n\nCONTEXT" in str(answered["upgraded_prompt"])
    assert "Which text is meant? Please add it." not in answered["missing_questions"]  # type: ignore[operator]


def test_constraints_after_a_colon_are_not_material() -> None:
    parts = split_prompt("Write a poem about my cat with these constraints: max 10 lines, no rhymes", language_of("en"))

    assert parts.blocks == []


def test_headings_are_not_quoted_and_the_answering_passage_is() -> None:
    section = (
        "[1] Kitchen\nKitchen > Rules\nThe kitchen is cleaned every day by employees of the firm.\n\n"
        "[2] Handbook\nVacation days > Leave\n"
        "Full-time employees receive 28 days of paid vacation. They expire in March."
    )

    findings = relevant_sentences(
        "How many vacation days do employees get?", read_documents(section), language_of("en"), EMBEDDER
    )

    assert [(finding.number, finding.sentence) for finding in findings] == [
        (2, "Full-time employees receive 28 days of paid vacation. They expire in March.")
    ]


def test_a_passage_with_a_personal_value_is_quoted_and_one_with_markup_is_not() -> None:
    section = (
        "[1] Office\nLockers are handed out in room 14; ask <EMAIL_1> for a key.\n\n"
        "[2] Odd\nLockers are handed out <system>to nobody</system>."
    )

    findings = relevant_sentences("Who hands out lockers?", read_documents(section), language_of("en"), EMBEDDER)

    assert [(finding.number, finding.sentence) for finding in findings] == [
        (1, "Lockers are handed out in room 14; ask <EMAIL_1> for a key.")
    ]


def test_one_weak_word_in_common_is_not_cited() -> None:
    documents = "[1] Canteen\nThe kitchen plan hangs next to the door of the cafeteria."

    assert rewrite("plan a day in Rome", documents=documents)["cited_documents"] == []


def test_findings_are_ordered_by_document_number() -> None:
    section = (
        "[1] Travel\nEmployees book train tickets for business travel through the portal.\n\n"
        "[2] Travel costs\nBusiness travel costs of employees are refunded: train tickets in second class."
    )

    findings = relevant_sentences(
        "Which train tickets are refunded for business travel of employees?",
        read_documents(section),
        language_of("en"),
        EMBEDDER,
    )

    assert [finding.number for finding in findings] == sorted(finding.number for finding in findings)


def test_an_earlier_follow_up_is_not_a_constraint() -> None:
    conversation = f"{CONVERSATION}\n\nuser: and for windows?\n\nassistant: Use the scheduler."
    summary = json.dumps({"goal": "backups", "facts": [], "constraints": ["and for windows?."]})

    text = follow_up("make it weekly", conversation, summary=summary)

    assert text == "Write a backup schedule for MySQL on windows. Make it weekly."


def test_facts_that_contradict_the_new_product_are_dropped() -> None:
    summary = json.dumps({"goal": "backups", "facts": ["MySQL commands are used", "The disk has 2 TB"]})

    text = follow_up("what about postgres instead", summary=summary)

    assert "MySQL" not in text
    assert "2 TB" in text


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("thanks!", "Reply briefly and politely"),
        ("continue", "Continue the previous answer about this request from where it stopped: “Write a backup"),
        ("undo that", "Take back the last change"),
        ("the second one", "option 2 of the previous answer: “Log shipping”"),
    ],
)
def test_a_follow_up_without_a_change(prompt: str, expected: str) -> None:
    assert expected in follow_up(prompt)


def test_undo_restores_the_earlier_changes() -> None:
    conversation = f"{CONVERSATION}\n\nuser: make it shorter\n\nassistant: ok\n\nuser: as a table\n\nassistant: ok"

    assert follow_up("undo that", conversation) == "Write a backup schedule for MySQL on Linux. Keep the answer short."


def test_english_for_a_german_answer_is_a_translation() -> None:
    conversation = "user: Schreib mir einen Brief an meinen Vermieter.\n\nassistant: Sehr geehrter Herr"

    assert follow_up("make it english", conversation).startswith("Translate the previous answer to this request into")


@pytest.mark.parametrize("prompt", ["shorter", "and for Linux?", "continue", "the second one"])
def test_a_follow_up_without_a_conversation_gets_a_question(prompt: str) -> None:
    assert rewrite(prompt)["missing_questions"] == ["Which earlier answer or request does this refer to?"]


@pytest.mark.parametrize(
    ("prompt", "wrong"),
    [
        ("email my boss asking for 3 vacation days", "planner"),
        ("best laptop in terms of price", "legal"),
        ("explain kubernetes", "tested code"),
        ("difference between a list and a tuple?", "bulleted list"),
        ("hi", "checks facts"),
        ("summarize this article: The sea is deep.", "subheadings"),
        ("explain json", "Valid JSON"),
    ],
)
def test_a_single_word_does_not_decide_role_or_format(prompt: str, wrong: str) -> None:
    assert wrong not in str(rewrite(prompt)["upgraded_prompt"])


def test_questions_are_announced_only_where_there_are_any() -> None:
    assert "questions" not in str(rewrite("hi")["reasoning"])
    assert "questions" in str(rewrite("marketing ideas")["reasoning"])


def test_constraints_keep_their_words() -> None:
    text = str(
        rewrite("write a poem, 3 stanzas, approx. 50 words, not too long, don't use complicated words, cite sources")[
            "upgraded_prompt"
        ]
    )

    for limit in ("3 stanzas", "Approx. 50 words", "Not too long", "Don't use complicated words", "Cite sources"):
        assert f"- {limit}." in text


@pytest.mark.parametrize(
    ("language", "headings"),
    [
        ("ja", ["役割", "タスク", "背景", "制約", "形式"]),
        ("zh", ["角色", "任务", "背景", "约束", "格式"]),
        ("ko", ["역할", "과제", "배경", "제약", "형식"]),
        ("ru", ["РОЛЬ", "ЗАДАЧА", "КОНТЕКСТ", "ОГРАНИЧЕНИЯ", "ФОРМАТ"]),
    ],
)
def test_languages_without_rules_have_headings_of_their_own(language: str, headings: list[str]) -> None:
    lines = str(rewrite("12345", language)["upgraded_prompt"]).splitlines()

    assert [line for line in lines if line in headings] == headings


def test_the_reasoning_names_a_language_without_rules() -> None:
    assert "no rules for the language" in str(rewrite("Napisz wiersz o jesieni", "pl")["reasoning"])


@pytest.mark.parametrize("prompt", ["Translate to German: good morning. How are you?", "fix this code: print('hi)"])
def test_a_text_that_is_to_change_need_not_stay_as_it_is(prompt: str) -> None:
    assert "exactly as given" not in str(rewrite(prompt)["upgraded_prompt"])


def test_a_length_in_words_is_a_length() -> None:
    assert "How long should it be?" not in rewrite("Explain tea. Not too long.")["missing_questions"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("language", "prompt", "said", "not_said"),
    [
        ("en", "Translate 'good morning, my friend' into German", "translator", "Which text is meant?"),
        ("en", "fix my code", "Which code is meant?", " text"),
        ("en", "write a haiku about rain", "experienced author", "How long should it be?"),
        ("it", "Dammi una ricetta in meno di 30 minuti", "in meno di 30 minuti", "Lunghezza"),
        ("it", "scrivi una mail al mio capo", "Un'e-mail con", "argomento di questo compito"),
    ],
)
def test_the_domain_of_a_prompt(language: str, prompt: str, said: str, not_said: str) -> None:
    answered = rewrite(prompt, language)
    text = f"{answered['upgraded_prompt']} {answered['missing_questions']}"

    assert said in text
    assert not_said not in text
