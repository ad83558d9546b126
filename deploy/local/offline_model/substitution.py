"""Moving a request to another subject of the same kind: "…on Windows?" and "and for Linux?" give "…on Linux?"."""

import re

# Things of one kind. Names of products are the same in all languages; names of countries and the like are not, and
# are left to be said as a sentence of their own.
_KINDS = (
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
# A version belongs to its product: "Windows 11" becomes "Linux", and "Java 17" becomes "Python 3".
_VERSION = r"(?:[ ]v?\d{1,4}(?:\.\d{1,4}){0,2}(?![\w%€$]))?"
_PATTERNS = tuple(re.compile(rf"(?<!\w)({kind})(?!\w){_VERSION}", re.IGNORECASE) for kind in _KINDS)


def substituted(request: str, target: str) -> str | None:
    """The request about the target's subject instead of its own; None where the two do not meet in one kind."""
    for pattern in _PATTERNS:
        wanted = pattern.search(target)
        present = {match.group(1).lower() for match in pattern.finditer(request)}
        if wanted and len(present) == 1 and wanted.group(1).lower() not in present:
            return pattern.sub(wanted.group(0).replace("\\", r"\\"), request)
    return None


def contradicts(text: str, target: str) -> bool:
    """Whether a text is about another subject of the target's kind: "MySQL 8 is installed" for Postgres."""
    for pattern in _PATTERNS:
        wanted = {match.group(1).lower() for match in pattern.finditer(target)}
        present = {match.group(1).lower() for match in pattern.finditer(text)}
        if wanted and present and not wanted & present:
            return True
    return False
