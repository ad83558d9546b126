"""Finds secrets by what stands in front of them: `password: …`, `API_KEY=…`, `Authorization: Bearer …`."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from enum import Enum

from shared.privacy.spans import Span


class Label(Enum):
    """What sort of value a label announces."""

    PASSWORD = "a password that a person chose"  # noqa: S105
    KEY = "a generated key or token"
    CODE = "a short number: PIN, security code, one-time code"
    KEYLIKE = "perhaps a key: only when it looks random"


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
_BY_LENGTH = sorted(
    ((word, label) for label, words in _LABELS.items() for word in words), key=lambda pair: len(pair[0]), reverse=True
)
# These say more with something in front (`db_password`), the rest only when they stand by themselves.
_MAY_END_A_NAME = {word for word, label in _BY_LENGTH if label in (Label.PASSWORD, Label.KEY) and len(word) > 4}

_STRONG = re.compile(
    r"[\"'`\]*_]{0,3}[ ]{0,4}(?:=>|:=|==?|:|->)[ ]{0,4}(?:\r?\n[ ]{0,4})?(?:(?:bearer|basic|token)[ ]{1,3})?",
    re.IGNORECASE,
)
_WEAK = re.compile(
    r"[ ]{0,2}(?:(?:for|of|für|von|pour|de|para|của)(?: [^\s:=]{1,30}){1,3}[ ])?"
    r"(?:\b(?:is|was|are|to|ist|lautet|est|es|é|är|er|on|to jest|là|это|is now|is set to)\b|是|为|為|は|는|은|—"
    r"|-)[ ]{0,2}[:=]?[ ]{0,2}",
    re.IGNORECASE,
)
_SPACE = re.compile(r"[ ]{1,3}")
_VALUE = re.compile(r"\"([^\"\r\n]{1,400})\"|'([^'\r\n]{1,400})'|`([^`\r\n]{1,400})`|([^\s\"'`,;<>|]{1,400})")
_CODE_VALUE = re.compile(r"[0-9]{3,8}(?![0-9A-Za-z_.,:/%-])")
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
    """Values behind the name of a secret, in prose, headers, settings and code."""
    for word, label in _BY_LENGTH:
        position = lower.find(word)
        while position != -1:
            end = position + len(word)
            if _stands_alone(lower, position, end, word):
                span = _value_behind(text, end, label, word)
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


def _value_behind(text: str, position: int, label: Label, word: str) -> Span | None:
    strong = _STRONG.match(text, position)
    if strong is None and word == "bearer":
        strong = _SPACE.match(text, position)
    gap = strong or _WEAK.match(text, position)
    if gap is None and label is Label.CODE:
        gap = _SPACE.match(text, position)
    if gap is None:
        return None
    if label is Label.CODE:
        code = _CODE_VALUE.match(text, gap.end())
        return Span(code.start(), code.end(), "SECRET", rank=4) if code else None
    match = _VALUE.match(text, gap.end())
    if match is None or match.lastindex is None:
        return None
    start, end = match.span(match.lastindex)
    quoted = match.lastindex < 4
    if not quoted:
        while end > start and text[end - 1] in ".!?:)]}*…" and not (text[end - 1] in "!?" and strong):
            end -= 1
    parameter = _NEXT_PARAMETER.search(text, start, end)
    if parameter and not quoted:
        end = parameter.start()
    value = text[start:end]
    if value and not _NOT_A_VALUE.fullmatch(value) and _is_secret(text, end, value, label, bool(strong), quoted):
        return Span(start, end, "SECRET", rank=7 if strong else 4)
    return None


def _is_secret(text: str, end: int, value: str, label: Label, strong: bool, quoted: bool) -> bool:
    mixed = any(c.isdigit() for c in value) and any(c.isalpha() for c in value)
    if label is Label.KEYLIKE:
        return strong and len(value) >= 20 and " " not in value and mixed and randomness(value) >= 3.3
    if label is Label.KEY:
        return _is_key(value, mixed, strong)
    if " " in value:
        return strong and quoted
    if _WORD.fullmatch(value):
        # A plain word is a password only where nothing else can follow: `password: swordfish`.
        return strong and len(value) >= 5 and (quoted or bool(_CLOSED.match(text, end)))
    if strong:
        return len(value) >= 3
    odd = any(not c.isalnum() and c not in "-'’/._" for c in value)
    return len(value) >= 5 and (mixed or odd)


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
