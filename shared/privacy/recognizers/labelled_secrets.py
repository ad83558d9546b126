"""Finds secrets by what stands in front of them: `password: …`, `API_KEY=…`, `--password …`, `<password>…`."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from shared.privacy.recognizers.spans import Span


class Label(Enum):
    """What sort of value a label announces."""

    PASSWORD = "a password that a person chose"  # noqa: S105
    KEY = "a generated key or token"
    CODE = "a short number: PIN, security code, one-time code"
    KEYLIKE = "perhaps a key: only when it looks random"


class Link(Enum):
    """What joins a label to its value, the surest first."""

    TAG = "<password>…</password>"
    SETTING = "password: … or password=…"
    OPTION_SETTING = "--password=…"
    OPTION = "--password …"
    IS = "the password is …"
    SPACE = "with password …"


_SURE = frozenset({Link.TAG, Link.SETTING, Link.OPTION_SETTING, Link.OPTION})


class _Gap(NamedTuple):
    """What is between a label and its value, and where it ends."""

    link: Link
    end: int


_LABELS: dict[Label, tuple[str, ...]] = {
    Label.PASSWORD: (
        "password", "passwd", "passphrase", "passcode", "pwd", "pass", "pw", "passwort", "kennwort",
        "mot de passe", "mdp",
        "contraseña", "clave", "senha", "wachtwoord", "lösenord", "adgangskode", "passord", "salasana", "hasło",
        "heslo",
        "jelszó", "parola", "şifre", "пароль", "mật khẩu", "密码", "密碼", "口令", "パスワード", "비밀번호",
        "암호", "كلمة المرور",
        "סיסמה", "รหัสผ่าน", "κωδικός", "kata sandi",
    ),
    Label.KEY: (
        "api key", "api-key", "api_key", "apikey", "secret", "secret key", "secret_key", "secretkey", "secret-key",
        "access key", "access_key", "accesskey", "access-key", "access token", "access_token", "accesstoken",
        "access-token",
        "token", "private key", "private_key", "privatekey", "private-key", "account key", "accountkey",
        "account_key",
        "signing key", "signing_key", "encryption key", "encryption_key", "client secret", "client_secret",
        "clientsecret",
        "credential", "credentials", "bearer", "authorization", "auth key", "auth_key", "authkey",
        "sharedaccesskey",
        "api-schlüssel", "clé api", "clave api", "密钥", "密鑰", "令牌", "トークン", "토큰", "токен",
    ),
    Label.CODE: (
        "pin", "pin code", "pin-code", "pincode", "cvv", "cvc", "cvv2", "cvc2", "security code", "otp",
        "one-time code",
        "one-time password", "verification code", "2fa code", "tan", "mã otp", "mã pin", "验证码", "認証コード",
        "인증번호",
    ),
    Label.KEYLIKE: ("key", "session", "sessionid", "session_id", "sid", "cookie", "signature", "sig", "auth",
    "schlüssel"),
}  # fmt: skip
_LABEL_OF = {word: label for label, words in _LABELS.items() for word in words}


def _by_stem() -> dict[str, tuple[str, ...]]:
    """The words by a shorter one that each of them holds: where `key` is not, `api_key` need not be looked for."""
    by_stem: dict[str, tuple[str, ...]] = {}
    for word in sorted(_LABEL_OF, key=len):
        stem = next((stem for stem in by_stem if stem in word), word)
        by_stem[stem] = (*by_stem.get(stem, ()), word)
    return by_stem


_WORDS_BY_STEM = _by_stem()
# These say more with something in front (`db_password`), the rest only when they stand by themselves.
_MAY_END_A_NAME = {word for word, label in _LABEL_OF.items() if label in (Label.PASSWORD, Label.KEY) and len(word) > 4}

_STRONG = re.compile(
    r"(?:\\{0,7}[\"'`\]*_]|&quot;){0,3}[ \t]{0,4}(?:=>|:=|==?|:|->)[ \t]{0,4}"
    r"(?:\r?\n[ \t]{0,4})?(?:(?:bearer|basic|token)[ ]{1,3})?",
    re.IGNORECASE,
)
_WEAK = re.compile(
    r"[ ]{0,2}(?:(?:for|of|für|von|pour|de|para|của)(?: [^\s:=]{1,30}){1,3}[ ])?"
    r"(?:\b(?:is|was|are|to|ist|lautet|est|es|é|är|er|on|to jest|là|это|is now|is set to)\b|是|为|為|は|는|은|—"
    r"|-(?!-))[ ]{0,2}[:=]?[ ]{0,2}",
    re.IGNORECASE,
)
_SPACE = re.compile(r"[ \t]{1,3}")
# On a command line: `--password …`, `--db-password=…`, `-pw …`.
_OPTION_DASHES = re.compile(r"(?:^|[\s\"'`(\[,])--?[\w-]{0,30}\Z")
_PATH = re.compile(r"[~.]{0,2}/.*|.*\.[a-z]{2,5}", re.IGNORECASE)
# In prose: `as ann with the password …`.
_JOINING_WORDS = re.compile(
    r"(?:\b(?:with|and|using|mit|und|avec|et|con|y|com|e|met|en|med|och|og|z|i|с|и|với|và)|[&+,/])"
    r"(?: (?:the|a|my|his|her|its|our|their|your|new|old|default|root|admin|das|dem|meinem|le|la|el|mi|il|de))? \Z"
)
# What stands behind "password" in prose, has digits or odd characters, and is none.
_TECHNICAL = re.compile(
    r"(?:sha|md|aes|rsa|base|utf|argon|pbkdf|oauth|ntlmv?|rfc|iso|ipv|tls|field|input|box|column|line|step|level|type"
    r"|option|rule|page|version|v)[-_ ]?[0-9].*|[0-9]{1,3}(?:[-+].*|st|nd|rd|th|chars?)|[a-z_]+[<>=]+[0-9]+"
    r"|[\w.-]*/.*|[\w-]+\.[a-z]{2,4}",
    re.IGNORECASE,
)
_IN_TAG = re.compile(r"<[\w.:-]*\Z")
_TAG_VALUE = re.compile(
    r"(?: [^<>]{0,200})?>(?:\s{0,20}<!\[CDATA\[([^\]<>]{1,400})\]\]>\s{0,20}|([^<>]{1,400}))</([\w.:-]{1,80})"
)
_VALUE = re.compile(
    r"(\\{1,7}[\"']|&quot;)(?!\1)([^\r\n]{1,400}?)\1|\"((?:[^\"\\\r\n]|\\[^\r\n]){1,400})\"|'([^'\r\n]{1,400})'"
    r"|`([^`\r\n]{1,400})`|([^\s\"'`,;<>|]{1,400})"
)
# The group of `_VALUE` that has no quotes around it.
_UNQUOTED = 6
_CODE_VALUE = re.compile(r"(?:\\{0,7}[\"']|&quot;)?([0-9]{3,8})(?![0-9A-Za-z_.,:/%-])")
_NOT_A_VALUE = re.compile(
    r"(?:str|string|text|bytes|int|integer|number|bool|boolean|any|null|none|nil|undefined|true|false|optional"
    r"|required"
    r"|secretstr|varchar|char|uuid|object|type|value|here|example|changeme|redacted|hidden|secret|password"
    r"|token|key"
    r"|your[_ -].*|my[_-].*|the[_-].*|x{3,}|\*{2,}|\.{2,}|-+|_+|•+|…|process\.env.*|os\.environ.*|os\.getenv.*"
    r"|env\..*|env\(.*"
    r"|getenv.*|system\.getenv.*|config\..*|settings\..*|self\..*|this\..*|req\..*|request\..*|props\..*"
    r"|params\..*|args\..*"
    r"|[a-z_][\w.]*\(.*|[a-z_][\w.]*\[.*|[$%{\[(<&@].*|[0-9]+-?bit.*|.*-(?:encoded|hashed|based|protected|only"
    r"|less|free)"
    r"|varchar\(.*|https?:.*)",
    re.IGNORECASE,
)  # fmt: skip
_NEXT_PARAMETER = re.compile(r"&[A-Za-z_][A-Za-z0-9_.-]*=")
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_CLOSED = re.compile(r"[ ]*(?:$|[\r\n,;})\]]|\.(?:\s|$))")


def find_labelled_secrets(text: str, lower: str) -> Iterator[Span]:
    """Values behind the name of a secret, in prose, headers, settings, code, markup and command lines."""
    for stem, words in _WORDS_BY_STEM.items():
        if stem in lower:
            for word in words:
                yield from _values_of(word, text, lower)


def _values_of(word: str, text: str, lower: str) -> Iterator[Span]:
    label = _LABEL_OF[word]
    position = lower.find(word)
    while position != -1:
        end = position + len(word)
        if _stands_alone(lower, position, end, word):
            gap = _gap(text, lower, position, end, label)
            span = _value_behind(text, gap, label) if gap else None
            if span:
                yield span
        position = lower.find(word, end)


def _stands_alone(lower: str, start: int, end: int, word: str) -> bool:
    if not word.isascii():
        return True
    before, after = lower[start - 1 : start], lower[end : end + 1]
    if after.isascii() and (after.isalnum() or after == "_"):
        return False
    return word in _MAY_END_A_NAME or not before.isalnum() or not before.isascii()


def _gap(text: str, lower: str, start: int, end: int, label: Label) -> _Gap | None:
    """What joins the label at `text[start:end]` to a value behind it."""
    before = lower[max(0, start - 40) : start]
    option = "-" in before and _OPTION_DASHES.search(before)
    if setting := _STRONG.match(text, end):
        return _Gap(Link.OPTION_SETTING if option and setting[0] == "=" else Link.SETTING, setting.end())
    tag = _TAG_VALUE.match(text, end) if "<" in before and _IN_TAG.search(before) else None
    if tag and tag[3].lower().endswith(lower[start:end]):
        return _Gap(Link.TAG, end)
    space = _SPACE.match(text, end)
    if option:
        return _Gap(Link.OPTION, space.end()) if space else None
    if space and lower[start:end] == "bearer":
        return _Gap(Link.SETTING, space.end())
    if weak := _WEAK.match(text, end):
        return _Gap(Link.IS, weak.end())
    # "Pass" is a verb too.
    joined = label is Label.PASSWORD and lower[start:end] != "pass" and _JOINING_WORDS.search(before)
    return _Gap(Link.SPACE, space.end()) if space and (joined or label is Label.CODE) else None


def _value_behind(text: str, gap: _Gap, label: Label) -> Span | None:
    start, end, quoted = _tag_value(text, gap.end) if gap.link is Link.TAG else _value(text, gap)
    if label is Label.CODE:
        code = _CODE_VALUE.match(text, start if gap.link is Link.TAG else gap.end)
        return Span(code.start(1), code.end(1), "SECRET", rank=4) if code else None
    value = text[start:end]
    if value and not _NOT_A_VALUE.fullmatch(value) and _is_secret(text, end, value, label, gap.link, quoted):
        return Span(start, end, "SECRET", rank=7 if gap.link in _SURE else 4)
    return None


def _tag_value(text: str, position: int) -> tuple[int, int, bool]:
    """Where the content of a tag starts and ends, white space around it left out."""
    match = _TAG_VALUE.match(text, position)
    if match is None:
        return position, position, True
    group = 2 if match[1] is None else 1
    content = match[group]
    start = match.start(group) + len(content) - len(content.lstrip())
    return start, start + len(content.strip()), True


def _value(text: str, gap: _Gap) -> tuple[int, int, bool]:
    """Where the value starts and ends, and whether it stands in quotes."""
    match = _VALUE.match(text, gap.end)
    if match is None or match.lastindex is None:
        return gap.end, gap.end, False
    start, end = match.span(match.lastindex)
    if match.lastindex < _UNQUOTED:
        return start, end, True
    while end > start and text[end - 1] in ".!?:)]}*…\\" and not (text[end - 1] in "!?" and gap.link in _SURE):
        end -= 1
    parameter = _NEXT_PARAMETER.search(text, start, end)
    return start, parameter.start() if parameter else end, False


def _is_secret(text: str, end: int, value: str, label: Label, link: Link, quoted: bool) -> bool:
    mixed = any(c.isdigit() for c in value) and any(c.isalpha() for c in value)
    if link is Link.OPTION and (value[0] == "-" or label is Label.KEYLIKE):
        return False
    if label is Label.KEYLIKE:
        return link in _SURE and len(value) >= 20 and " " not in value and mixed and randomness(value) >= 3.3
    if label is Label.KEY:
        return not (link is Link.OPTION and _PATH.fullmatch(value)) and _is_key(value, mixed, link in _SURE)
    if " " in value:
        return link in _SURE and quoted and "\n" not in value
    if _WORD.fullmatch(value):
        return len(value) >= 5 and _word_is_password(text, end, value, link, quoted)
    if link in _SURE:
        return len(value) >= 3
    if link is Link.SPACE:
        return _looks_like_password(value)
    odd = any(not c.isalnum() and c not in "-'’/._" for c in value)
    return len(value) >= 5 and (mixed or odd)


def _word_is_password(text: str, end: int, value: str, link: Link, quoted: bool) -> bool:
    """A plain word is a password only where nothing else can follow: `password: swordfish`."""
    if link is Link.OPTION_SETTING:
        # `--password=PASSWORD` is how the option is described.
        return quoted or not value.isupper()
    return link in _SURE and (quoted or (link is Link.SETTING and bool(_CLOSED.match(text, end))))


def _looks_like_password(value: str) -> bool:
    """Whether it can only be a password, with no more than "and password" in front."""
    if len(value) < 5 or _TECHNICAL.fullmatch(value):
        return False
    digits = sum(c.isdigit() for c in value)
    return digits >= 6 or 0 < digits < len(value) or any(c in "!#$%^~*" for c in value[1:])


def _is_key(value: str, mixed: bool, strong: bool) -> bool:
    if " " in value or len(value) < 8 or (not mixed and len(value) < 16):
        return False
    if _WORD.fullmatch(value) and (value.islower() or value.istitle()):
        return False
    needed = 2.5 if strong else 3.0
    return randomness(value) >= needed and (strong or len(value) >= 12)


def randomness(value: str) -> float:
    """Shannon entropy of the characters of `value`, in bits per character."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())
