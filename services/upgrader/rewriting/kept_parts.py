"""What a rewrite must keep of its prompt: numbers, names, code, quotations, variables and placeholders."""

import re
from collections.abc import Iterator, Sequence

_CODE = re.compile(r"```.*?(?:```|$)|`[^`\n]+`", re.DOTALL)
_QUOTATION = re.compile(
    r'"([^"\n]{2,2000})"|“([^”\n]{2,2000})”|«([^»\n]{2,2000})»|„([^“”\n]{2,2000})[“”]|「([^」\n]{2,2000})」'
)
_CODE_BLOCK = re.compile(r"```.*?```", re.DOTALL)
_LONG_QUOTATION = re.compile(r'"([^"\n]{25,2000})"|“([^”\n]{25,2000})”|«([^»\n]{25,2000})»|„([^“\n]{25,2000})“')
_PLACEHOLDER = re.compile(r"<[A-Z][A-Z_]*_\d+>")
_VARIABLE = re.compile(
    r"\{\{[^{}\n]{1,60}\}\}|\$\{[^{}\n]{1,60}\}|(?<![\w{$])\{[A-Za-z_]\w{0,40}\}(?!\})|%\(\w+\)[sd]|(?<!\w)%[sd]\b"
)
_ADDRESS = re.compile(r"https?://[^\s<>\"'）)]+")
_IDENTIFIER = re.compile(
    r"(?<![\w<])(?:[A-Za-z]+[a-z][A-Z]\w*|[A-Za-z]\w*_\w+|[A-Za-z]\w*(?:\.[A-Za-z]\w*)+(?:\(\))?|[A-Z]{2,}\d*|[A-Za-z]+\d+\w*)(?![\w>])"
)
_NUMBER = re.compile(r"(?<![\w.,])\d+(?:[.,:]\d+)*")
_CAPITALIZED = re.compile(r"(?<=[a-zà-ÿ,;] )[A-ZÀ-Þ][a-zà-ÿ]{2,}(?: [A-ZÀ-Þ][a-zà-ÿ]{2,})*")
_SPACES = re.compile(r"\s+")
_SPELLED = {
    "1": "one", "2": "two", "3": "three", "4": "four", "5": "five", "6": "six",
    "7": "seven", "8": "eight", "9": "nine", "10": "ten",
}  # fmt: skip


def lost_parts(prompt: str, upgraded: str, conversation: Sequence[str] = (), *, follow_up: bool = False) -> list[str]:
    """The parts of `prompt` that `upgraded` lacks, in order.

    A follow-up may replace a number of the conversation by another one ("5 instead of 3"): such a number may go.
    """
    squeezed = _squeezed(upgraded)
    lowered = squeezed.lower()
    said = _squeezed("\n".join(conversation)) if follow_up else ""
    lost = [part for part in _exact_parts(prompt) if _squeezed(part) not in squeezed]
    prose = _without_exact_parts(prompt)
    lost += [name for name in _names(prose) if name.lower() not in lowered and not _inflected(name, lowered)]
    numbers = _NUMBER.findall(prose)
    for number in dict.fromkeys(numbers):
        replaced = len(numbers) > 1 and _has_number(number, said)
        if not _has_number(number, squeezed) and not replaced:
            lost.append(number)
    return list(dict.fromkeys(lost))


def keep_verbatim_parts(prompt: str, upgraded: str) -> str:
    """`upgraded`, with the code blocks and long quotations of `prompt` that it lost put back at its end."""
    squeezed = _squeezed(upgraded)
    lost = [part for part in _verbatim_parts(prompt) if _squeezed(part) not in squeezed]
    return "\n\n".join([upgraded.rstrip(), *lost]) if lost else upgraded


def _verbatim_parts(prompt: str) -> list[str]:
    """The fenced code blocks of a prompt, then the long quotations outside of them, in order."""
    prose = _CODE_BLOCK.sub(" ", prompt)
    return _CODE_BLOCK.findall(prompt) + [match.group(0) for match in _LONG_QUOTATION.finditer(prose)]


def _exact_parts(prompt: str) -> Iterator[str]:
    for match in _CODE.finditer(prompt):
        code = match.group(0)
        yield code if code.startswith("```") else code.strip("`").strip()
    prose = _CODE.sub(" ", prompt)
    for match in _QUOTATION.finditer(prose):
        yield next(group for group in match.groups() if group)
    for pattern in (_PLACEHOLDER, _VARIABLE, _ADDRESS):
        yield from (match.group(0).rstrip(".,;:!?") for match in pattern.finditer(prose))


def _without_exact_parts(prompt: str) -> str:
    for pattern in (_CODE, _QUOTATION, _PLACEHOLDER, _VARIABLE, _ADDRESS):
        prompt = pattern.sub(" ", prompt)
    return prompt


def _names(prose: str) -> Iterator[str]:
    letters = [character for character in prose if character.isalpha()]
    if letters and sum(character.isupper() for character in letters) > len(letters) * 0.5:
        return  # written in capitals: they say nothing
    yield from _IDENTIFIER.findall(prose)
    capitalized = _CAPITALIZED.findall(prose)
    # Where many words are capitalized, as German nouns are, capitals do not mark names.
    if len(capitalized) <= max(1, len(prose.split()) // 6):
        yield from capitalized


def _inflected(name: str, text: str) -> bool:
    """Whether each word of the name occurs but for its ending."""
    return all(word.lower()[: max(3, len(word) - 2)] in text for word in name.split())


def _has_number(number: str, text: str) -> bool:
    if re.search(rf"(?<![\d.,]){re.escape(number)}(?!\d|[.,]\d)", text):
        return True
    spelled = _SPELLED.get(number)
    return spelled is not None and re.search(rf"\b{spelled}\b", text, re.IGNORECASE) is not None


def _squeezed(text: str) -> str:
    """White space and the kind of quotation mark do not count as a change, and fences may carry a language."""
    without_fences = re.sub(r"```\w*", "", text)
    return _SPACES.sub(" ", re.sub(r"[\"“”„«»「」]+", " ", without_fences)).strip()
