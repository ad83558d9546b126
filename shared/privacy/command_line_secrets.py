"""Finds passwords on command lines that only their command tells: `curl -u ann:…`, `mysql -p…`, `redis-cli -a …`."""

import re
from collections.abc import Iterator

from shared.privacy.spans import Span

_QUOTED = r"\"([^\"\r\n]{1,200})\"|'([^'\r\n]{1,200})'"
# Both begin with the dash itself, which the search jumps to.
_USER_OPTION = re.compile(
    r"-(?<=\s-)(?:[uU] {0,3}|-(?:proxy-)?user(?:=| {1,3}))"
    r"(?:\"[^\s\"':]{0,100}:([^\"\r\n]{1,200})\"|'[^\s\"':]{0,100}:([^'\r\n]{1,200})'"
    rf"|[^\s\"':]{{0,100}}:(?:{_QUOTED}|([^\s\"'`|;<>]{{1,200}})))"
)
_PASSWORD_OPTION = re.compile(rf"-(?<=\s-)([apP])( {{0,3}})(?:{_QUOTED}|([^\s\"'`|;<>]{{1,200}}))")
_CURL = re.compile(r"\bcurl\b")
# The commands whose `-p` and so on is a password, right behind the letter or with a space between.
_WITH_SPACE = {
    "p": re.compile(
        r"\bsshpass\Z|\bmongo(?:sh|dump|restore|import|export)\b|\b(?:docker|podman|helm registry|az|oc|cf) login\b"
    ),
    "a": re.compile(r"\bredis-cli\b"),
    "P": re.compile(r"\bsqlcmd\b"),
}
# `mysql -p shop` asks for the password; `shop` is the database.
_WITHOUT_SPACE = {"p": re.compile(r"\bsshpass\Z|(?<![\w.-])(?:mysql\w*|mariadb[\w-]*)(?!\S)")}
_END_OF_COMMAND = re.compile(r"[|&;\n](?:(?<=\|)|(?<=&)&|(?<=;) |(?<=\n)(?<!\\\n)(?<!\\\r\n))")
_QUOTED_ARGUMENT = re.compile(r"[\"'](?<=[\s=].)(?:(?<=\")[^\"]*\"|(?<=')[^']*')")
_LONGEST_COMMAND = 200
# Options, templates, and the ports of `docker run --name mysql -p3306:3306`.
_NOT_A_VALUE = re.compile(r"-.*|[0-9.:]*:[0-9]+(?:/tcp|/udp)?|[$%{\[(<@].*|x{3,}|\*+|\.{2,}|password", re.IGNORECASE)


def find_command_line_secrets(text: str) -> Iterator[Span]:
    """Passwords behind `-u`, `-p`, `-a` and `-P` of the commands that take them there."""
    for match in _USER_OPTION.finditer(text):
        yield from _secret(text, match, _CURL)
    for match in _PASSWORD_OPTION.finditer(text):
        commands = (_WITH_SPACE if match[2] else _WITHOUT_SPACE).get(match[1])
        if commands:
            yield from _secret(text, match, commands)


def _secret(text: str, option: re.Match[str], commands: re.Pattern[str]) -> Iterator[Span]:
    start, end = option.span(option.lastindex or 0)
    value = text[start:end].rstrip(".,)]}\\")
    if value and not _NOT_A_VALUE.fullmatch(value) and commands.search(_command_before(text, option.start())):
        yield Span(start, start + len(value), "SECRET", rank=7)


def _command_before(text: str, option: int) -> str:
    before = _QUOTED_ARGUMENT.sub("", text[max(0, option - _LONGEST_COMMAND) : option])
    return _END_OF_COMMAND.split(before.rstrip(" "))[-1]
