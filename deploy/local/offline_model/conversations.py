"""Reads conversations: the turns, the request that a follow-up refers to, and the changes that it asks for."""

import re
from dataclasses import dataclass, field

from deploy.local.offline_model.languages import Language
from deploy.local.offline_model.passages import asks, without_polite_words
from deploy.local.offline_model.text_pieces import PLACEHOLDER, split_clauses, split_sentences, words

_TURN = re.compile(r"(?:\A|\n\n)(user|assistant|system): ")
_FOLLOW_UP_WORDS = 14
_CLAUSE_WORDS = 9
# Products of one kind each. Product names are the same in all languages, unlike names of countries, for example.
_PRODUCTS = (
    "windows|macos|mac os|mac|linux|ubuntu|debian|fedora|android|ios|iphone|raspberry pi",
    "python|javascript|typescript|java|c\\+\\+|c#|rust|golang|go|php|ruby|kotlin|swift|bash|powershell",
    "postgresql|postgres|mysql|mariadb|sqlite|mongodb|oracle|sql server|redis",
    "aws|azure|google cloud|gcp",
    "react|angular|vue|svelte|django|flask|fastapi|spring boot|rails|laravel",
    "docker|podman|kubernetes",
    "chrome|firefox|safari|edge",
    "excel|google sheets|libreoffice calc",
    "kafka|rabbitmq|nats|pulsar",
    "instagram|facebook|linkedin|tiktok|youtube|twitter",
)
# A version is replaced together with its product: "Windows 11" becomes "Linux", and "Java 17" becomes "Python 3".
_VERSION = r"(?:[ ]v?\d{1,4}(?:\.\d{1,4}){0,2}(?![\w%€$]))?"
_PRODUCT_PATTERNS = tuple(re.compile(rf"(?<!\w)({kind})(?!\w){_VERSION}", re.IGNORECASE) for kind in _PRODUCTS)


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: str
    text: str


@dataclass
class FollowUp:
    """A parsed follow-up. `changes` are the recognised kinds of change; `verbatim` sentences are to be quoted."""

    changes: list[str] = field(default_factory=list)
    audience: str | None = None
    language: str | None = None
    transfer: str | None = None
    verbatim: list[str] = field(default_factory=list)


def read_conversation(section: str) -> list[Turn]:
    """Parses the messages of a `conversation` section, in order."""
    starts = list(_TURN.finditer(section))
    ends = [match.start() for match in starts[1:]] + [len(section)] if starts else []
    turns = [Turn(s.group(1), section[s.end() : end].strip()) for s, end in zip(starts, ends, strict=True)]
    return [turn for turn in turns if turn.text]


def is_follow_up(text: str, language: Language | None) -> bool:
    """Whether a message depends on an earlier one and is incomplete without it."""
    size = len(text.split())
    if language is None:
        return len(words(text)) <= 6
    if size > _FOLLOW_UP_WORDS:
        return False
    if language.pattern["follow_up"].match(text.strip()):
        return True
    has_goal = any(pattern.search(text) for pattern in language.table["goals"].values())
    if language.pattern["pronoun"].search(text) and len(words(text, language.stopword_set)) <= 4:
        return True
    return not has_goal and size <= 3


def last_request(turns: list[Turn], language: Language | None) -> tuple[str | None, list[str]]:
    """Returns the latest user message with a complete request of its own, and the user messages after it.

    Returns None and all user messages when there is no such message.
    """
    asked = [turn.text for turn in turns if turn.role == "user"]
    for index in range(len(asked) - 1, -1, -1):
        text = asked[index]
        if not is_follow_up(text, language) and any(asks(sentence, language) for sentence in split_sentences(text)):
            return text, asked[index + 1 :]
    return None, asked


def main_sentences(text: str, language: Language | None, limit: int = 3) -> list[str]:
    """Returns the sentences of a message that ask for something, or else its first sentences."""
    sentences = [sentence for sentence in split_sentences(text) if not sentence.startswith("```")]
    asking = [sentence for sentence in sentences if asks(sentence, language)] if language else []
    return (asking or sentences or [text])[:limit]


def read_follow_up(text: str, language: Language) -> FollowUp:
    """Parses a follow-up clause by clause."""
    follow_up = FollowUp()
    text = without_polite_words(text.strip().lstrip("¿¡"), language)
    transfer = language.pattern["transfer"].fullmatch(text.rstrip(" ?.!"))
    if transfer and len(text.split()) <= _CLAUSE_WORDS:
        target = next((group for group in transfer.groups() if group), "").strip(" ?.!")
        if target and _unrecognised(target, language, FollowUp()):
            follow_up.transfer = target
            return follow_up
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        clauses = _clauses(sentence, language)
        understood = FollowUp()
        rests = [_unrecognised(clause, language, understood) for clause in clauses]
        if not any(rests) and (understood.changes or understood.audience or understood.language):
            follow_up.changes += [change for change in understood.changes if change not in follow_up.changes]
            follow_up.audience = understood.audience or follow_up.audience
            follow_up.language = understood.language or follow_up.language
        elif sentence.strip():
            follow_up.verbatim.append(sentence.strip())
    return follow_up


def substituted(request: str, target: str) -> str | None:
    """Returns the request with its product replaced by the target's product of the same kind; None without one."""
    for pattern in _PRODUCT_PATTERNS:
        wanted = pattern.search(target)
        present = {match.group(1).lower() for match in pattern.finditer(request)}
        if wanted and len(present) == 1 and wanted.group(1).lower() not in present:
            return pattern.sub(wanted.group(0).replace("\\", r"\\"), request)
    return None


def contradicts(text: str, target: str) -> bool:
    """Whether a text names another product of the target's kind: "MySQL 8 is installed" for Postgres."""
    for pattern in _PRODUCT_PATTERNS:
        wanted = {match.group(1).lower() for match in pattern.finditer(target)}
        present = {match.group(1).lower() for match in pattern.finditer(text)}
        if wanted and present and not wanted & present:
            return True
    return False


def _clauses(sentence: str, language: Language) -> list[str]:
    parts = [piece for clause in split_clauses(sentence) for piece in language.pattern["clause_break"].split(clause)]
    return [part.strip(" .!?,") for part in parts if part and part.strip(" .!?,")]


def _unrecognised(clause: str, language: Language, into: FollowUp) -> str:
    """Adds the recognised changes of the clause to `into` and returns the remaining words, without filler words."""
    if PLACEHOLDER.search(clause):
        return clause
    rest = clause
    named = language.pattern["in_language"].search(rest)
    kind = language.first_kind("language_words", named.group(0)) if named else None
    if named and kind:
        into.language = kind
        rest = rest.replace(named.group(0), " ", 1)
    audience = language.pattern["audience"].search(rest)
    if audience:
        into.audience = audience.group(0).strip()
        rest = rest.replace(audience.group(0), " ", 1)
    for change, pattern in language.table["changes"].items():
        match = pattern.search(rest)
        if match:
            into.changes += [] if change in into.changes else [change]
            rest = rest.replace(match.group(0), " ", 1)
    for name in ("polite", "leftover"):
        rest = language.pattern[name].sub(" ", rest)
    return " ".join(re.findall(r"\w+", rest))
