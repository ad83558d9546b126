"""Finds secrets by the name in front of them: `password: …`, `API_KEY=…`, `--password …`, `<password>…`.

A labelled secret has three parts:

- a name: a word for a secret (`password`, `api key`, `pin`), alone or at the end of a longer name (`db_password`);
- an operator between name and value: `:` or `=`, the end of an opening tag, the space after a command-line option,
  a verb such as `is`, or a plain space;
- a value: a quoted string, a word, or the content of the tag.

The operator decides how much the value must look like a secret. After a strong operator, `password: swordfish`, a plain
word may be one; after a weak operator, `the password is …`, only text that is unlikely to be prose.

`find_labelled_secrets` looks for each name. Where one occurs, `_is_whole_name` checks that it is not part of another
word, `_operator_after` recognizes the operator, and `_secret_after` delimits the value and decides whether it is a
secret.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from shared.privacy.recognizers.spans import Span


class Secret(Enum):
    """The kind of secret that a name announces."""

    PASSWORD = "a password that a person chose"  # noqa: S105
    KEY = "a generated key or token"
    CODE = "a short number: PIN, security code, one-time code"
    POSSIBLE_KEY = "a key if it looks random, otherwise nothing"


class Operator(Enum):
    """What joins a name to its value, the strongest evidence first."""

    TAG = "<password>…</password>"
    ASSIGNMENT = "password: … or password=…"
    OPTION_ASSIGNMENT = "--password=…"
    OPTION_SPACE = "--password …"
    VERB = "the password is …"
    SPACE = "with password …"


_STRONG_OPERATORS = frozenset({Operator.TAG, Operator.ASSIGNMENT, Operator.OPTION_ASSIGNMENT, Operator.OPTION_SPACE})


class _FoundOperator(NamedTuple):
    operator: Operator
    end: int


class _FoundValue(NamedTuple):
    start: int
    end: int
    quoted: bool


# Names

_NAMES: dict[Secret, tuple[str, ...]] = {
    Secret.PASSWORD: (
        "password", "passwd", "passphrase", "passcode", "pwd", "pass", "pw", "passwort", "kennwort", "mot de passe",
        "mdp", "contraseña", "clave", "senha", "wachtwoord", "lösenord", "adgangskode", "passord", "salasana", "hasło",
        "heslo", "jelszó", "parola", "şifre", "пароль", "mật khẩu", "密码", "密碼", "口令", "パスワード", "비밀번호",
        "암호", "كلمة المرور", "סיסמה", "รหัสผ่าน", "κωδικός", "kata sandi",
    ),
    Secret.KEY: (
        "api key", "api-key", "api_key", "apikey", "secret", "secret key", "secret_key", "secretkey", "secret-key",
        "access key", "access_key", "accesskey", "access-key", "access token", "access_token", "accesstoken",
        "access-token", "token", "private key", "private_key", "privatekey", "private-key", "account key",
        "accountkey", "account_key", "signing key", "signing_key", "encryption key", "encryption_key",
        "client secret", "client_secret", "clientsecret", "credential", "credentials", "bearer", "authorization",
        "auth key", "auth_key", "authkey", "sharedaccesskey", "api-schlüssel", "clé api", "clave api", "密钥", "密鑰",
        "令牌", "トークン", "토큰", "токен",
    ),
    Secret.CODE: (
        "pin", "pin code", "pin-code", "pincode", "cvv", "cvc", "cvv2", "cvc2", "security code", "otp",
        "one-time code", "one-time password", "verification code", "2fa code", "tan", "mã otp", "mã pin", "验证码",
        "認証コード", "인증번호",
    ),
    Secret.POSSIBLE_KEY: (
        "key", "session", "sessionid", "session_id", "sid", "cookie", "signature", "sig", "auth", "schlüssel",
    ),
}  # fmt: skip
_SECRET_OF = {name: secret for secret, names in _NAMES.items() for name in names}
# These are also found at the end of a longer name (`db_password`); all other names must stand alone.
_MAY_END_A_NAME = {
    name for name, secret in _SECRET_OF.items() if secret in (Secret.PASSWORD, Secret.KEY) and len(name) > 4
}


def _by_stem() -> dict[str, tuple[str, ...]]:
    """Groups the names by a shorter name that they contain: text without `key` need not be searched for `api_key`."""
    by_stem: dict[str, tuple[str, ...]] = {}
    for name in sorted(_SECRET_OF, key=len):
        stem = next((stem for stem in by_stem if stem in name), name)
        by_stem[stem] = (*by_stem.get(stem, ()), name)
    return by_stem


_NAMES_BY_STEM = _by_stem()

# Operators, matched right after a name

_ASSIGNMENT = re.compile(
    r"(?:\\{0,7}[\"'`\]*_]|&quot;){0,3}[ \t]{0,4}(?:=>|:=|==?|:|->)[ \t]{0,4}"
    r"(?:\r?\n[ \t]{0,4})?(?:(?:bearer|basic|token)[ ]{1,3})?",
    re.IGNORECASE,
)
_VERB = re.compile(
    r"[ ]{0,2}(?:(?:for|of|für|von|pour|de|para|của)(?: [^\s:=]{1,30}){1,3}[ ])?"
    r"(?:\b(?:is|was|are|to|ist|lautet|est|es|é|är|er|on|to jest|là|это|is now|is set to)\b|是|为|為|は|는|은|—"
    r"|-(?!-))[ ]{0,2}[:=]?[ ]{0,2}",
    re.IGNORECASE,
)
_SPACE = re.compile(r"[ \t]{1,3}")

# What may stand right before a name

# The name is a command-line option: `--password …`, `--db-password=…`, `-pw …`.
_OPTION_DASHES = re.compile(r"(?:^|[\s\"'`(\[,])--?[\w-]{0,30}\Z")
# The name is a tag.
_TAG_START = re.compile(r"<[\w.:-]*\Z")
# The name is mentioned in prose: `as ann with the password …`.
_JOINING_WORDS = re.compile(
    r"(?:\b(?:with|and|using|mit|und|avec|et|con|y|com|e|met|en|med|och|og|z|i|с|и|với|và)|[&+,/])"
    r"(?: (?:the|a|my|his|her|its|our|their|your|new|old|default|root|admin|das|dem|meinem|le|la|el|mi|il|de))? \Z"
)

# Values

# The rest of a tag after its name. Groups: CDATA content, other content, name of the closing tag.
_TAG_CONTENT = re.compile(
    r"(?: [^<>]{0,200})?>(?:\s{0,20}<!\[CDATA\[([^\]<>]{1,400})\]\]>\s{0,20}|([^<>]{1,400}))</([\w.:-]{1,80})"
)
# Five forms of quotes, and in the last group a value without quotes.
_VALUE = re.compile(
    r"(\\{1,7}[\"']|&quot;)(?!\1)([^\r\n]{1,400}?)\1|\"((?:[^\"\\\r\n]|\\[^\r\n]){1,400})\"|'([^'\r\n]{1,400})'"
    r"|`([^`\r\n]{1,400})`|([^\s\"'`,;<>|]{1,400})"
)
_UNQUOTED_GROUP = 6
_CODE = re.compile(r"(?:\\{0,7}[\"']|&quot;)?([0-9]{3,8})(?![0-9A-Za-z_.,:/%-])")
# Placeholders, type names and references to where the secret really is.
_NOT_A_VALUE = re.compile(
    r"(?:str|string|text|bytes|int|integer|number|bool|boolean|any|null|none|nil|undefined|true|false|optional"
    r"|required|secretstr|varchar|char|uuid|object|type|value|here|example|changeme|redacted|hidden|secret"
    r"|password|token|key|your[_ -].*|my[_-].*|the[_-].*|x{3,}|\*{2,}|\.{2,}|-+|_+|•+|…|process\.env.*"
    r"|os\.environ.*|os\.getenv.*|env\..*|env\(.*|getenv.*|system\.getenv.*|config\..*|settings\..*|self\..*"
    r"|this\..*|req\..*|request\..*|props\..*|params\..*|args\..*|[a-z_][\w.]*\(.*|[a-z_][\w.]*\[.*|[$%{\[(<&@].*"
    r"|[0-9]+-?bit.*|.*-(?:encoded|hashed|based|protected|only|less|free)"
    r"|varchar\(.*|https?:.*)",
    re.IGNORECASE,
)  # fmt: skip
# Where the value of one URL parameter ends.
_NEXT_PARAMETER = re.compile(r"&[A-Za-z_][A-Za-z0-9_.-]*=")
# What may follow a value that is a plain word, so that it is not the beginning of a sentence.
_END_OF_VALUE = re.compile(r"[ ]*(?:$|[\r\n,;})\]]|\.(?:\s|$))")
_PLAIN_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_PATH = re.compile(r"[~.]{0,2}/.*|.*\.[a-z]{2,5}", re.IGNORECASE)
# Terms that follow "password" in prose and contain digits or special characters.
_TECHNICAL = re.compile(
    r"(?:sha|md|aes|rsa|base|utf|argon|pbkdf|oauth|ntlmv?|rfc|iso|ipv|tls|field|input|box|column|line|step|level|type"
    r"|option|rule|page|version|v)[-_ ]?[0-9].*|[0-9]{1,3}(?:[-+].*|st|nd|rd|th|chars?)|[a-z_]+[<>=]+[0-9]+"
    r"|[\w.-]*/.*|[\w-]+\.[a-z]{2,4}",
    re.IGNORECASE,
)

# Bits per character.
_KEY_ENTROPY = 2.5
_KEY_ENTROPY_AFTER_WEAK_OPERATOR = 3.0
_POSSIBLE_KEY_ENTROPY = 3.3


def find_labelled_secrets(text: str, lower: str) -> Iterator[Span]:
    """Yields labelled secrets in prose, headers, settings, code, markup and command lines.

    `lower` is the text in lower case, with the same positions.
    """
    for stem, names in _NAMES_BY_STEM.items():
        if stem in lower:
            for name in names:
                yield from _secrets_named(name, text, lower)


def _secrets_named(name: str, text: str, lower: str) -> Iterator[Span]:
    secret = _SECRET_OF[name]
    start = lower.find(name)
    while start != -1:
        end = start + len(name)
        if _is_whole_name(lower, start, end, name):
            found = _operator_after(text, lower, start, end, secret)
            span = _secret_after(text, found, secret) if found else None
            if span:
                yield span
        start = lower.find(name, end)


def _is_whole_name(lower: str, start: int, end: int, name: str) -> bool:
    """Whether the name stands alone, or ends a longer name if it may. Names in other scripts need no boundary."""
    if not name.isascii():
        return True
    before, after = lower[start - 1 : start], lower[end : end + 1]
    if after.isascii() and (after.isalnum() or after == "_"):
        return False
    return name in _MAY_END_A_NAME or not before.isalnum() or not before.isascii()


def _operator_after(text: str, lower: str, start: int, end: int, secret: Secret) -> _FoundOperator | None:
    """Returns the operator that follows the name at `text[start:end]`."""
    before = lower[max(0, start - 40) : start]
    is_option = "-" in before and _OPTION_DASHES.search(before)
    if assignment := _ASSIGNMENT.match(text, end):
        option_assignment = is_option and assignment[0] == "="
        return _FoundOperator(
            Operator.OPTION_ASSIGNMENT if option_assignment else Operator.ASSIGNMENT, assignment.end()
        )
    tag = _TAG_CONTENT.match(text, end) if "<" in before and _TAG_START.search(before) else None
    if tag and tag[3].lower().endswith(lower[start:end]):
        return _FoundOperator(Operator.TAG, end)
    space = _SPACE.match(text, end)
    if is_option:
        return _FoundOperator(Operator.OPTION_SPACE, space.end()) if space else None
    if space and lower[start:end] == "bearer":
        return _FoundOperator(Operator.ASSIGNMENT, space.end())
    if verb := _VERB.match(text, end):
        return _FoundOperator(Operator.VERB, verb.end())
    # "pass" is excluded because it is also a verb.
    in_prose = secret is Secret.PASSWORD and lower[start:end] != "pass" and _JOINING_WORDS.search(before)
    return _FoundOperator(Operator.SPACE, space.end()) if space and (in_prose or secret is Secret.CODE) else None


def _secret_after(text: str, found: _FoundOperator, secret: Secret) -> Span | None:
    """Returns the value after the operator if it is a secret of the announced kind."""
    if secret is Secret.CODE:
        start = _tag_content(text, found.end).start if found.operator is Operator.TAG else found.end
        code = _CODE.match(text, start)
        return Span(code.start(1), code.end(1), "SECRET", rank=4) if code else None
    value = _tag_content(text, found.end) if found.operator is Operator.TAG else _value(text, found)
    content = text[value.start : value.end]
    if not content or _NOT_A_VALUE.fullmatch(content) or not _is_secret(text, value, secret, found.operator):
        return None
    return Span(value.start, value.end, "SECRET", rank=7 if found.operator in _STRONG_OPERATORS else 4)


def _tag_content(text: str, name_end: int) -> _FoundValue:
    """Delimits the content of the tag whose name ends at `name_end`, without surrounding white space."""
    match = _TAG_CONTENT.match(text, name_end)
    if match is None:
        return _FoundValue(name_end, name_end, quoted=True)
    group = 2 if match[1] is None else 1
    content = match[group]
    start = match.start(group) + len(content) - len(content.lstrip())
    return _FoundValue(start, start + len(content.strip()), quoted=True)


def _value(text: str, found: _FoundOperator) -> _FoundValue:
    """Delimits a quoted value, or an unquoted one without the punctuation that ends a sentence or a bracket."""
    match = _VALUE.match(text, found.end)
    if match is None or match.lastindex is None:
        return _FoundValue(found.end, found.end, quoted=False)
    start, end = match.span(match.lastindex)
    if match.lastindex < _UNQUOTED_GROUP:
        return _FoundValue(start, end, quoted=True)
    keeps_marks = found.operator in _STRONG_OPERATORS
    while end > start and text[end - 1] in ".!?:)]}*…\\" and not (text[end - 1] in "!?" and keeps_marks):
        end -= 1
    parameter = _NEXT_PARAMETER.search(text, start, end)
    return _FoundValue(start, parameter.start() if parameter else end, quoted=False)


def _is_secret(text: str, value: _FoundValue, secret: Secret, operator: Operator) -> bool:
    content, strong = text[value.start : value.end], operator in _STRONG_OPERATORS
    if operator is Operator.OPTION_SPACE and content[0] == "-":
        return False  # the next option
    match secret:
        case Secret.POSSIBLE_KEY:
            return strong and operator is not Operator.OPTION_SPACE and _is_random(content)
        case Secret.KEY:
            is_path = operator is Operator.OPTION_SPACE and _PATH.fullmatch(content)
            return not is_path and _is_key(content, strong)
        case _:
            return _is_password(text, value, operator)


def _is_random(content: str) -> bool:
    return (
        len(content) >= 20 and " " not in content and _is_mixed(content) and _entropy(content) >= _POSSIBLE_KEY_ENTROPY
    )


def _is_key(content: str, strong: bool) -> bool:
    if " " in content or len(content) < 8 or (len(content) < 16 and not _is_mixed(content)):
        return False
    if _PLAIN_WORD.fullmatch(content) and (content.islower() or content.istitle()):
        return False
    if strong:
        return _entropy(content) >= _KEY_ENTROPY
    return len(content) >= 12 and _entropy(content) >= _KEY_ENTROPY_AFTER_WEAK_OPERATOR


def _is_password(text: str, value: _FoundValue, operator: Operator) -> bool:
    content, strong = text[value.start : value.end], operator in _STRONG_OPERATORS
    if " " in content:
        return strong and value.quoted and "\n" not in content
    if _PLAIN_WORD.fullmatch(content):
        return len(content) >= 5 and _is_word_a_password(text, value, operator)
    if strong:
        return len(content) >= 3
    if operator is Operator.SPACE:
        return _is_unmistakable_password(content)
    return len(content) >= 5 and (_is_mixed(content) or any(not c.isalnum() and c not in "-'’/._" for c in content))


def _is_word_a_password(text: str, value: _FoundValue, operator: Operator) -> bool:
    """Whether a plain word is a password because the operator and what follows exclude prose."""
    match operator:
        case Operator.OPTION_ASSIGNMENT:
            # Upper case is documentation of the option: `--password=PASSWORD`.
            return value.quoted or not text[value.start : value.end].isupper()
        case Operator.ASSIGNMENT:
            return value.quoted or _END_OF_VALUE.match(text, value.end) is not None
        case _:
            return operator in _STRONG_OPERATORS and value.quoted


def _is_unmistakable_password(content: str) -> bool:
    """Whether the content can only be a password, even after no more than "and password"."""
    if len(content) < 5 or _TECHNICAL.fullmatch(content):
        return False
    digits = sum(c.isdigit() for c in content)
    return digits >= 6 or 0 < digits < len(content) or any(c in "!#$%^~*" for c in content[1:])


def _is_mixed(content: str) -> bool:
    """Whether the content has both letters and digits."""
    return any(c.isdigit() for c in content) and any(c.isalpha() for c in content)


def _entropy(content: str) -> float:
    """Returns the Shannon entropy of the characters, in bits per character."""
    return -sum(n / len(content) * math.log2(n / len(content)) for n in Counter(content).values())
