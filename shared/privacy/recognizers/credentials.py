"""Finds secrets: provider keys, tokens, private keys, and passwords in URLs, on command lines and behind labels.

`labelled_secrets` finds those behind a name such as `password:`; this module finds the others by their form.
"""

import re
from collections.abc import Iterator

from shared.privacy.recognizers.labelled_secrets import find_labelled_secrets
from shared.privacy.recognizers.spans import UNBREAKABLE, Span

# Words long enough to be a key. Only these are matched against the formats below, which keeps prose cheap.
_LONG_WORD = re.compile(r"[A-Za-z0-9_](?<![A-Za-z0-9_-].)[A-Za-z0-9_.~+/:=-]{15,}")
_PROVIDER_KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"sk-(?:proj-|ant-(?:api|admin)[0-9]{2}-|svcacct-|or-v1-)?[A-Za-z0-9_-]{16,}"  # OpenAI, Anthropic, OpenRouter
    r"|(?:sk|pk|rk)_(?:live|test)_[A-Za-z0-9]{10,}|whsec_[A-Za-z0-9+/=]{20,}"  # Stripe
    r"|(?:AKIA|ASIA|ABIA|ACCA|AIDA|AROA)[A-Z0-9]{16}(?![A-Za-z0-9])"  # AWS
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}"  # GitHub
    r"|gl(?:pat|dt|rt|ptt|ft|soat)-[A-Za-z0-9_.-]{20,}"  # GitLab
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-[0-9]-[A-Za-z0-9-]{10,}"  # Slack
    r"|AIza[A-Za-z0-9_-]{30,}|ya29\.[A-Za-z0-9_-]{20,}|GOCSPX-[A-Za-z0-9_-]{20,}"  # Google
    r"|SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}|key-[0-9a-f]{32}"  # SendGrid, Mailgun
    r"|npm_[A-Za-z0-9]{30,}|pypi-[A-Za-z0-9_-]{40,}|dckr_pat_[A-Za-z0-9_-]{20,}"  # registries
    r"|do[opr]_v1_[0-9a-f]{40,}|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{24,}|hf_[A-Za-z0-9]{20,}|gsk_[A-Za-z0-9]{20,}"
    r"|xai-[A-Za-z0-9]{20,}|r8_[A-Za-z0-9]{20,}|pplx-[A-Za-z0-9]{20,}|lin_api_[A-Za-z0-9]{20,}|ntn_[A-Za-z0-9]{20,}"
    r"|secret_[A-Za-z0-9]{40,}|figd_[A-Za-z0-9_-]{20,}|dapi[0-9a-f]{32}|hv[sbr]\.[A-Za-z0-9_-]{20,}|tskey-[A-Za-z0-9-]{20,}"
    r"|sq0(?:atp|csp|idp)-[A-Za-z0-9_-]{20,}|EAA[A-Za-z0-9]{60,}|pu_[A-Za-z0-9_-]{16,}|PMAK-[0-9a-f-]{30,}"
    r"|(?:AC|SK)[0-9a-f]{32}(?![A-Za-z0-9])|AGE-SECRET-KEY-1[A-Z0-9]{50,}|[0-9]{8,10}:AA[A-Za-z0-9_-]{33}"
    r"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*){1,3}"  # JWT and JWE
    r"|hooks\.slack\.com/services/[A-Za-z0-9/]{20,}"
    r")"
)
_PUNCTUATION_AFTER_KEY = ".:/=~+"

_KEY_BEGIN = "-----BEGIN "
_KEY_HEADER = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_KEY_FOOTER = re.compile(r"-----END (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
# The lines of base64 after a header, for a key whose footer is missing.
_KEY_LINES = re.compile(r"(?:\s{0,4}[A-Za-z0-9+/=]{16,})*")
_LONGEST_KEY_BLOCK = 16_000

_URL_PASSWORD = re.compile(r"://[^\s/@:\"'<>]{0,128}:([^\s/\"'<>]{1,256})@(?=[\w\[])")
_TEMPLATE = re.compile(r"[<\[{$%*].*|x{3,}|\.{3,}", re.IGNORECASE)

# Both patterns begin with the dash itself, so that the search jumps from dash to dash.
_QUOTED = r"\"([^\"\r\n]{1,200})\"|'([^'\r\n]{1,200})'"
_USER_OPTION = re.compile(
    r"-(?<=\s-)(?:[uU] {0,3}|-(?:proxy-)?user(?:=| {1,3}))"
    r"(?:\"[^\s\"':]{0,100}:([^\"\r\n]{1,200})\"|'[^\s\"':]{0,100}:([^'\r\n]{1,200})'"
    rf"|[^\s\"':]{{0,100}}:(?:{_QUOTED}|([^\s\"'`|;<>]{{1,200}})))"
)
_PASSWORD_OPTION = re.compile(rf"-(?<=\s-)([apP])( {{0,3}})(?:{_QUOTED}|([^\s\"'`|;<>]{{1,200}}))")
_CURL = re.compile(r"\bcurl\b")
# By option letter: the commands that take a password after this option and a space.
_WITH_SPACE = {
    "p": re.compile(
        r"\bsshpass\Z|\bmongo(?:sh|dump|restore|import|export)\b|\b(?:docker|podman|helm registry|az|oc|cf) login\b"
    ),
    "a": re.compile(r"\bredis-cli\b"),
    "P": re.compile(r"\bsqlcmd\b"),
}
# The same for a password right after the letter. `mysql -p shop` prompts for the password; `shop` is the database.
_WITHOUT_SPACE = {"p": re.compile(r"\bsshpass\Z|(?<![\w.-])(?:mysql\w*|mariadb[\w-]*)(?!\S)")}
_END_OF_COMMAND = re.compile(r"[|&;\n](?:(?<=\|)|(?<=&)&|(?<=;) |(?<=\n)(?<!\\\n)(?<!\\\r\n))")
_QUOTED_ARGUMENT = re.compile(r"[\"'](?<=[\s=].)(?:(?<=\")[^\"]*\"|(?<=')[^']*')")
_LONGEST_COMMAND = 200
# Options, templates, and ports as in `docker run --name mysql -p3306:3306`.
_NOT_A_VALUE = re.compile(r"-.*|[0-9.:]*:[0-9]+(?:/tcp|/udp)?|[$%{\[(<@].*|x{3,}|\*+|\.{2,}|password", re.IGNORECASE)


def find_secrets(text: str, lower: str) -> Iterator[Span]:
    """Yields keys, tokens and passwords. `lower` is the text in lower case, with the same positions."""
    yield from _provider_keys(text)
    yield from _private_keys(text)
    yield from _url_passwords(text)
    yield from find_labelled_secrets(text, lower)
    yield from _command_line_passwords(text)


def _provider_keys(text: str) -> Iterator[Span]:
    for word in _LONG_WORD.finditer(text):
        for match in _PROVIDER_KEY.finditer(text, word.start(), word.end()):
            end = match.end()
            # Stripe's webhook secrets (`whsec_`) may end in these characters.
            while text[end - 1] in _PUNCTUATION_AFTER_KEY and not text[match.start()].startswith("w"):
                end -= 1
            yield Span(match.start(), end, "SECRET", rank=9)


def _private_keys(text: str) -> Iterator[Span]:
    begin = text.find(_KEY_BEGIN)
    while begin != -1:
        header = _KEY_HEADER.match(text, begin)
        end = begin + len(_KEY_BEGIN)
        if header:
            limit = begin + _LONGEST_KEY_BLOCK
            footer = _KEY_FOOTER.search(text, header.end(), limit)
            lines = _KEY_LINES.match(text, header.end(), limit)
            end = footer.end() if footer else max(header.end(), lines.end() if lines else 0)
            yield Span(begin, end, "SECRET", rank=9)
        begin = text.find(_KEY_BEGIN, end)


def _url_passwords(text: str) -> Iterator[Span]:
    position = text.find("://")
    while position != -1:
        match = _URL_PASSWORD.match(text, position)
        if match and not _TEMPLATE.fullmatch(match[1]):
            yield Span(match.start(1), match.end(1), "SECRET", rank=UNBREAKABLE)
        position = text.find("://", position + 3)


def _command_line_passwords(text: str) -> Iterator[Span]:
    """Yields passwords after `-u`, `-p`, `-a` and `-P` of the commands that take a password there."""
    for match in _USER_OPTION.finditer(text):
        yield from _option_password(text, match, _CURL)
    for match in _PASSWORD_OPTION.finditer(text):
        commands = (_WITH_SPACE if match[2] else _WITHOUT_SPACE).get(match[1])
        if commands:
            yield from _option_password(text, match, commands)


def _option_password(text: str, option: re.Match[str], commands: re.Pattern[str]) -> Iterator[Span]:
    start, end = option.span(option.lastindex or 0)
    value = text[start:end].rstrip(".,)]}\\")
    if value and not _NOT_A_VALUE.fullmatch(value) and commands.search(_command_before(text, option.start())):
        yield Span(start, start + len(value), "SECRET", rank=7)


def _command_before(text: str, option: int) -> str:
    """Returns the command that the option at this position belongs to, without quoted arguments."""
    before = _QUOTED_ARGUMENT.sub("", text[max(0, option - _LONGEST_COMMAND) : option])
    return _END_OF_COMMAND.split(before.rstrip(" "))[-1]
