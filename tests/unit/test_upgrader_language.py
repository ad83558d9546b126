"""Language of short prompts: a labelled set, what does not count, and the conversation as the fallback."""

import json
from collections import Counter
from pathlib import Path
from time import process_time

import pytest

from services.upgrader.reading import language
from services.upgrader.reading.language import LanguageModelLoading, detect_language
from shared.contracts.upgrade_tasks import ConversationMessage

SHORT_PROMPTS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "turns" / "languages.jsonl").read_text(encoding="utf-8").splitlines()
]
# Every third prompt is kept from tuning the tables.
TUNED = [item for number, item in enumerate(SHORT_PROMPTS) if number % 3 != 2]
KEPT = SHORT_PROMPTS[2::3]
LEAST_RIGHT = 0.97

# Fragments without function words. English is the likeliest language of these.
ENGLISH_FRAGMENTS = """
C++ vs Rust; gym routine; sales pitch; skin care routine men; job interview tips; world war two causes; cheap
flights; dinner recipes; fun facts about cats; wedding speech best man; apology letter boss; haiku ocean; used
car inspection checklist; baby shower games; elevator pitch saas; tax deductions freelancers; home office setup;
rap battle lyrics; dog training basics; chess openings explained; react hooks tutorial; regex phone numbers;
linkedin headline ideas; product launch timeline; customer complaint response; moving to canada; camping packing
list; toddler sleep schedule; thank you note teacher; quantum entanglement simple; stoic philosophy quotes;
salary negotiation script; compare tesla models; vegan protein sources; roman empire fall reasons; cover letter
nurse; pirate joke; sci-fi plot twist; unity player movement; bash rename files; excel pivot table; git rebase
conflict; fantasy map names; bedtime story dragon; keto grocery list; beach body workout; podcast intro;
instagram captions sunset; python decorators; startup valuation methods; garden layout small yard; guitar chords
beginner; museum visit questions kids; retirement party toast; yoga sequence back pain; crime scene description;
personal finance rules; alien language words; chocolate cake; morning routine
"""

LABELLED = (
    ("make it shorter", "en"),
    ("write a haiku", "en"),
    ("Explain recursion to a beginner", "en"),
    ("why is the sky blue?", "en"),
    ("best laptop under 1000 dollars", "en"),
    ("now in Vietnamese", "en"),
    ("debug this code", "en"),
    ("cold email to investors", "en"),
    ("marketing plan for a bakery", "en"),
    ("Translate “guten Morgen, wie geht es dir” into Spanish", "en"),
    ("What does 「お疲れ様」 mean?", "en"),
    ("Schreib ein Gedicht über den Herbst", "de"),
    ("kürzer bitte", "de"),
    ("Erkläre mir Photosynthese", "de"),
    ("Was ist der Unterschied zwischen TCP und UDP?", "de"),
    ("und für Linux?", "de"),
    ("Bewerbung als Koch", "de"),
    ("Mach es einfacher", "de"),
    ("Écris un poème sur l'automne", "fr"),
    ("plus court", "fr"),
    ("Explique la photosynthèse", "fr"),
    ("Quelle est la capitale du Japon ?", "fr"),
    ("et pour Linux ?", "fr"),
    ("lettre de motivation pour un stage", "fr"),
    ("Escribe un poema sobre el otoño", "es"),
    ("más corto", "es"),
    ("¿Cuál es la capital de Francia?", "es"),
    ("Explícame la fotosíntesis", "es"),
    ("hazlo más sencillo", "es"),
    ("receta de paella para cuatro", "es"),
    ("Escreva um poema sobre o outono", "pt"),
    ("mais curto", "pt"),
    ("Qual é a capital da França?", "pt"),
    ("explique a fotossíntese para iniciantes", "pt"),
    ("Scrivi una poesia sull'autunno", "it"),
    ("più corto", "it"),
    ("Qual è la capitale della Francia?", "it"),
    ("spiegami la fotosintesi", "it"),
    ("Schrijf een gedicht over de herfst", "nl"),
    ("korter graag", "nl"),
    ("wat is het verschil tussen TCP en UDP?", "nl"),
    ("Viết một bài thơ về mùa thu", "vi"),
    ("thêm ví dụ", "vi"),
    ("ngắn hơn", "vi"),
    ("Thủ đô của Pháp là gì?", "vi"),
    ("giải thích đệ quy", "vi"),
    ("viết email xin nghỉ phép", "vi"),
    ("Napisz wiersz o jesieni", "pl"),
    ("krócej proszę", "pl"),
    ("Skriv en dikt om hösten", "sv"),
    ("kortare tack", "sv"),
    ("Skriv et digt om efteråret", "da"),
    ("Hva er forskjellen mellom TCP og UDP?", "no"),
    ("Kirjoita runo syksystä", "fi"),
    ("Sonbahar hakkında bir şiir yaz", "tr"),
    ("daha kısa", "tr"),
    ("Buatkan puisi tentang hujan", "id"),
    ("lebih singkat", "id"),
    ("Scrie o poezie despre toamnă", "ro"),
    ("Napiš báseň o podzimu", "cs"),
    ("Írj egy verset az őszről", "hu"),
    ("秋についての俳句を書いて", "ja"),
    ("もっと短く", "ja"),
    ("再短一点", "zh"),
    ("写一首关于秋天的诗", "zh"),
    ("用 Python 写一个 quicksort", "zh"),
    ("Pythonでクイックソートを書いて", "ja"),
    ("가을에 대한 시를 써줘", "ko"),
    ("더 짧게", "ko"),
    ("Напиши стихотворение об осени", "ru"),
    ("короче", "ru"),
    ("Напиши вірш про осінь", "uk"),
    ("اكتب قصيدة عن الخريف", "ar"),
    ("یک شعر درباره پاییز بنویس", "fa"),
    ("כתוב שיר על הסתיו", "he"),
    ("เขียนบทกวีเกี่ยวกับฤดูใบไม้ร่วง", "th"),
    ("शरद ऋतु पर एक कविता लिखो", "hi"),
    ("Γράψε ένα ποίημα για το φθινόπωρο", "el"),
)


@pytest.mark.parametrize(("prompt", "expected"), LABELLED)
def test_a_short_prompt_is_recognized(prompt: str, expected: str) -> None:
    assert detect_language(prompt) == expected


@pytest.mark.parametrize("prompts", [TUNED, KEPT], ids=["tuned", "kept"])
def test_the_language_of_short_prompts_is_right(prompts: list[dict[str, object]]) -> None:
    missed = []
    for item in prompts:
        history = [ConversationMessage(role="user", content=said) for said in item.get("history", ())]  # type: ignore[attr-defined]
        found = detect_language(str(item["prompt"]), history)
        if found != item["language"]:
            missed.append((item["language"], found, item["prompt"]))
    assert 1 - len(missed) / len(prompts) >= LEAST_RIGHT, missed


def test_english_fragments_are_not_taken_for_another_language() -> None:
    fragments = [" ".join(fragment.split()) for fragment in ENGLISH_FRAGMENTS.split(";")]
    missed = [(detect_language(fragment), fragment) for fragment in fragments if detect_language(fragment) != "en"]
    assert 1 - len(missed) / len(fragments) >= 0.95, missed


def test_the_short_prompts_cover_the_languages() -> None:
    counts = Counter(item["language"] for item in SHORT_PROMPTS)
    assert sorted(counts) == ["ar", "de", "en", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt", "ru", "tr", "vi", "zh"]
    assert min(counts.values()) >= 24
    assert sum(counts.values()) >= 400
    assert {item["language"] for item in KEPT} == set(counts)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Summarise {{文章内容}} in three sentences", "en"),
        ("Rewrite {{текст}}", "en"),
        ("Résume ${the_text} en trois phrases", "fr"),
        ("Schreibe <the name> eine Absage", "de"),
        ("اعمل code review", "ar"),
        ("Deploy app lên server", "vi"),
        ("Review code giúp mình", "vi"),
        ("prijs per persoon", "nl"),
    ],
)
def test_variables_and_borrowed_words_do_not_count(prompt: str, expected: str) -> None:
    assert detect_language(prompt) == expected


@pytest.mark.parametrize("prompt", ["Budget?", "pro Person", "kürzer", "danke", "короче", "Setup CI/CD"])
def test_one_word_does_not_outweigh_the_conversation(prompt: str) -> None:
    history = [ConversationMessage(role="user", content="Viết bài thơ về mẹ cho các em nhỏ")]
    assert detect_language(prompt, history) == "vi"


@pytest.mark.parametrize("text", ["wir vergleichen die Kosten ", "zorgvuldig bekijken kubernetes ", "请帮我比较价格"])
def test_two_hundred_characters_take_less_than_a_millisecond(text: str) -> None:
    prompt = (text * 40)[:200]
    detect_language(prompt)
    times = []
    for _ in range(50):
        started = process_time()
        detect_language(prompt)
        times.append(process_time() - started)
    assert min(times) < 0.001


def test_code_addresses_and_placeholders_do_not_count() -> None:
    code = "```python\nfor item in the_list:\n    print(item)  # show the item and the rest of it\n```"
    assert detect_language(f"Erkläre diesen Code:\n{code}") == "de"
    assert detect_language("Écris à <EMAIL_1> via https://example.com/what-is-the-best-way-to-write") == "fr"
    assert detect_language("<EMAIL_1> <PHONE_2>") == "en"


def test_a_follow_up_without_words_of_its_own_is_in_the_language_of_the_conversation() -> None:
    history = (
        ConversationMessage(role="user", content="Schreib mir eine Funktion, die eine Liste sortiert"),
        ConversationMessage(role="assistant", content="Hier ist die Funktion: ..."),
    )
    assert detect_language("Python?", history) == "de"
    assert detect_language("???", history) == "de"
    assert detect_language("make it shorter please", history) == "en"


def test_the_users_words_go_before_the_assistants() -> None:
    history = (
        ConversationMessage(role="user", content="Traduis ce texte en anglais, s'il te plaît"),
        ConversationMessage(role="assistant", content="Here is the text that you wanted, in English."),
    )
    assert detect_language("ok", history) == "fr"


@pytest.mark.parametrize("prompt", ["", " ", "42", "🙂", "```\n```", "<EMAIL_1>"])
def test_without_words_and_conversation_it_is_english(prompt: str) -> None:
    assert detect_language(prompt) == "en"


@pytest.mark.parametrize(
    "prompt",
    [
        "logo design ideas",
        "plan trip to rome 3 days w/ kids",
        "recipe pasta carbonara",
        "asdfghjkl",
        "resume tips",
        "kubernetes pod crashloop",
        "what about postgres instead",
    ],
)
def test_a_few_plain_words_are_english_and_do_not_need_the_model(prompt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_loaded() -> None:
        raise AssertionError("the statistical model was asked")

    monkeypatch.setattr(language, "_model", not_loaded)

    assert detect_language(prompt) == "en"


async def test_the_model_is_loaded_at_the_start() -> None:
    loading = LanguageModelLoading()

    await loading.start()
    await loading.stop(30.0)

    assert language._model.cache_info().currsize == 1
