"""What the user gave word for word must be in the rewritten prompt word for word: code blocks and long quotations."""

import re

_CODE_BLOCK = re.compile(r"```.*?```", re.DOTALL)
_QUOTATION = re.compile(r'"([^"\n]{25,2000})"|“([^”\n]{25,2000})”|«([^»\n]{25,2000})»|„([^“\n]{25,2000})“')


def keep_verbatim_parts(prompt: str, upgraded: str) -> str:
    """`upgraded`, with the code blocks and quotations of `prompt` that it lost put back at its end."""
    lost = [part for part in verbatim_parts(prompt) if _squeezed(part) not in _squeezed(upgraded)]
    return "\n\n".join([upgraded.rstrip(), *lost]) if lost else upgraded


def verbatim_parts(prompt: str) -> list[str]:
    """The fenced code blocks of a prompt, then the quotations outside of them, in order."""
    blocks = _CODE_BLOCK.findall(prompt)
    prose = _CODE_BLOCK.sub(" ", prompt)
    return blocks + [match.group(0) for match in _QUOTATION.finditer(prose)]


def _squeezed(text: str) -> str:
    """White space and the kind of quotation mark do not count as a change, and fences may carry a language."""
    without_fences = re.sub(r"```\w*", "", text)
    return re.sub(r"[\s\"“”„«»]+", " ", without_fences).strip()
