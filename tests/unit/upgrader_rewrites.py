"""Rewrites by hand: what a good model sends back, and the ways in which a bad one spoils it."""

# ruff: noqa: E501 -- prompts read best in one piece

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from services.upgrader.rewriting.checks import Material

INSTRUCTIONS = (
    "You rewrite prompts. You are given a prompt that somebody typed for a language model, and what is known around it; "
    "you return the prompt they should have typed. You never answer the prompt yourself."
)
PYTHON = (
    "Write a Python function that sorts a list of dictionaries by a key.",
    "def sort_by(items, key): return sorted(items, key=lambda item: item[key])\nThe function returns a new list.",
)
DOG = ("My dog ate chocolate, what do I do?", "Call a vet at once; they may tell you to give hydrogen peroxide.")
LEAVE_VI = (
    "Viết email xin nghỉ phép 3 ngày cho sếp",
    "Kính gửi anh Minh, em xin phép nghỉ từ 12/5 đến 14/5 vì việc gia đình.",
)
BERLIN = (
    "Plane ein Wochenende in Berlin für zwei Personen.",
    "Samstag: Museumsinsel und Spree. Sonntag: Flohmarkt am Mauerpark.",
)


@dataclass(frozen=True)
class Case:
    """A prompt with its conversation, a good rewrite, and a direct answer to the prompt."""

    material: Material
    good: str
    answer: str


def _full(prompt: str, good: str, answer: str, language: str = "en", conversation: tuple[str, ...] = ()) -> Case:
    return Case(Material(prompt, "full", language, conversation, instructions=INSTRUCTIONS), good, answer)


def _follow_up(prompt: str, good: str, answer: str, conversation: tuple[str, ...], language: str = "en") -> Case:
    return Case(Material(prompt, "contextual", language, conversation, instructions=INSTRUCTIONS), good, answer)


CASES: dict[str, Case] = {
    "recursion": _full(
        "explain recursion",
        "ROLE: You are a patient computer science teacher.\nTASK: Explain recursion step by step, with the base case and the "
        "recursive case.\nCONTEXT: The reader is assumed to know loops and functions.\nFORMAT: Short sections and one example.",
        "Recursion is when a function calls itself until it reaches a base case.",
    ),
    "email": _full(
        "write email to <EMAIL_1> about the 3 late invoices from Acme, total 4,250.50 EUR",
        "ROLE: You are an accounts clerk.\n\nTASK: Write an email to <EMAIL_1> about the 3 late invoices from Acme with a "
        "total of 4,250.50 EUR.\n\nCONSTRAINTS: Stay polite and firm; ask for a date of payment.\n\nFORMAT: A subject line "
        "and at most two paragraphs.",
        "Dear <EMAIL_1>, the 3 invoices from Acme over 4,250.50 EUR are late. Kind regards.",
    ),
    "regex": _full(
        "fix my regex `^\\d{3}-\\d{4}$` so it matches 555-1234 and getUserName() stays",
        "## Role\nYou are a regular expression expert.\n## Task\nCorrect `^\\d{3}-\\d{4}$` so that it matches 555-1234, and "
        "keep getUserName() as it is.\n## Format\nThe corrected expression, then one line on what was wrong.",
        "The regex `^\\d{3}-\\d{4}$` already matches 555-1234, and getUserName() stays.",
    ),
    "variables": _full(
        "Summarise {{article}} in three sentences for ${audience}",
        "**Role**\nYou are an editor.\n\n**Task**\nSummarise {{article}} in three sentences for ${audience}.\n\n**Constraints**\n"
        "Keep names and figures; add no opinion.",
        "The text {{article}} says that sales rose in spring, which ${audience} welcomed.",
    ),
    "peru": _full("What is the capital of Peru?", "What is the capital city of Peru, and since when?", "Lima is it, in Peru, the capital.", conversation=PYTHON),
    "german": _full(
        "gedicht über den herbst, 12 zeilen, ohne reim",
        "ROLLE: Du bist Lyriker.\nAUFGABE: Schreibe ein Gedicht über den Herbst mit 12 Zeilen ohne Reim.\nKONTEXT: Der Anlass ist "
        "nicht genannt.\nFORM: Nur das Gedicht, ohne Titel.",
        "Blätter fallen leise nieder, der Herbst ist da, der Wind zieht durch 12 Zeilen ohne Reim.",
        language="de",
    ),
    "vietnamese": _full(
        "viết bài giới thiệu về Đà Nẵng 200 từ",
        "VAI TRÒ: Bạn là người viết nội dung du lịch.\nNHIỆM VỤ: Viết bài giới thiệu về Đà Nẵng khoảng 200 từ.\nRÀNG BUỘC: Giọng thân "
        "thiện.\nĐỊNH DẠNG: Ba đoạn ngắn.",
        "Đà Nẵng là thành phố biển xinh đẹp ở miền Trung, bài giới thiệu này dài 200 từ.",
        language="vi",
    ),
    "chinese": _full(
        "写一封请假邮件，3天",
        "角色：你是一名员工。\n任务：写一封请假邮件，请假3天，写明原因和交接。\n要求：语气礼貌。\n格式：主题和正文。",
        "尊敬的领导，我因身体不适，想请假3天，望批准。",
        language="zh",
    ),
    "spanish": _full(
        "ideas para regalar a mi madre por 50 euros",
        "ROL: Eres un asesor de regalos.\nTAREA: Propón ideas para regalar a mi madre con un presupuesto de 50 euros.\nCONTEXTO: No se "
        "conocen sus gustos.\nFORMATO: Una lista con precio y motivo.",
        "A tu madre le gustará un libro por 50 euros.",
        language="es",
    ),
    "quotation": _full(
        'Translate "The early bird catches the worm" into formal French',
        'ROLE: You are a literary translator.\nTASK: Translate "The early bird catches the worm" into formal French.\nFORMAT: The '
        "translation, then one note on the idiom.",
        'In formal French, "The early bird catches the worm" becomes: Le monde appartient à ceux qui se lèvent tôt.',
    ),
    "how much": _follow_up(
        "how much?",
        "How much hydrogen peroxide should I give my dog after it ate chocolate?",
        "About one teaspoon for every five pounds of your dog's weight.",
        DOG,
    ),
    "shorter": _follow_up(
        "viết ngắn gọn hơn và lịch sự hơn",
        "Viết lại email xin nghỉ phép 3 ngày gửi sếp cho ngắn gọn hơn và lịch sự hơn.",
        "Kính gửi anh Minh, em xin phép nghỉ 3 ngày. Em cảm ơn anh.",
        LEAVE_VI,
        language="vi",
    ),
    "linux": _follow_up(
        "and in Rust with 2 type parameters?",
        "Write the function that sorts a list of dictionaries by a key in Rust with 2 type parameters.",
        "fn sort_by takes 2 type parameters in Rust and returns the sorted list.",
        PYTHON,
    ),
    "kids": _follow_up(
        "und jetzt mit 2 Kindern",
        "Plane das Wochenende in Berlin für zwei Personen mit 2 Kindern neu.",
        "Samstag: Zoo in Berlin mit den 2 Kindern. Sonntag: Naturkundemuseum.",
        BERLIN,
        language="de",
    ),
}  # fmt: skip

Spoil = Callable[[Case], str]


def _old_topic(case: Case) -> str:
    if case.material.mode == "full" and case.material.conversation:
        return f"{case.good} Write it as a Python function that sorts a list of dictionaries by key."
    return "Describe the geology of Iceland for tourists, with volcanoes, glaciers and hot springs."


SPOILERS: dict[str, Spoil] = {
    "echo": lambda case: case.material.prompt,
    "echo with a full stop": lambda case: f"{case.material.prompt}.",
    "echo in capitals": lambda case: case.material.prompt.upper(),
    "echo with please": lambda case: f"Please {case.material.prompt}",
    "answer": lambda case: case.answer,
    "polite answer": lambda case: f"Sure! Here is what you asked for: {case.answer}",
    "marker leak": lambda case: f"[[prompt 3fa9c1d2]]\n{case.good}\n[[/prompt 3fa9c1d2]]",
    "template leak": lambda case: f"{case.good}\n{INSTRUCTIONS}",
    "field leak": lambda case: f"upgraded_prompt: {case.good}",
    "loop": lambda case: "\n".join([case.good] * 6),
    "flood": lambda case: case.good + " and so on, with every detail that could matter" * 600,
    "wrong topic": _old_topic,
    "nothing": lambda case: "…",
}


def spoiled() -> Iterator[tuple[str, Material, str]]:
    """Every case in every way of being spoilt: name, material and text."""
    for name, case in CASES.items():
        for spoiler, spoil in SPOILERS.items():
            yield f"{name}: {spoiler}", case.material, spoil(case)
        for number in ("4,250.50", "555-1234", "200", "12", "50", "3", "2"):
            if number in case.material.prompt and number in case.good:
                yield f"{name}: {number} changed", case.material, case.good.replace(number, "77")
                break
        for part in ("<EMAIL_1>", "{{article}}", "${audience}", "getUserName()", "Acme", "Peru", "worm"):
            if part in case.material.prompt:
                yield f"{name}: {part} dropped", case.material, case.good.replace(part, "it")
