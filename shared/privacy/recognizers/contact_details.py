"""Finds e-mail addresses, also encoded or spelled out (`ann (at) example (dot) com`), and IP addresses."""

import ipaddress
import re
from collections.abc import Iterator

from shared.privacy.recognizers.spans import Span

_CJK = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
# Scripts without spaces between words: `邮箱是ann@example.com请回复` contains `ann@example.com`.
_LOCAL_REVERSED = re.compile(rf"(?:[^\W{_CJK}]|[.!#$%&*+=?^`{{|}}~'/-]){{1,64}}|[\w.+-]{{1,64}}")
_QUOTED_LOCAL = re.compile(r'"[^"\\\r\n]{1,62}"$')
_ASCII_DOMAIN = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.){1,8}(?:xn--[A-Za-z0-9-]{2,59}|[A-Za-z]{2,63})")
_IDN_DOMAIN = re.compile(r"(?:[^\W_](?:[\w-]{0,62})\.){1,8}(?:xn--[A-Za-z0-9-]{2,59}|[^\W\d_]{2,63})")
# `example(dot)com`
_DOT = r"(?:\.| ?[(\[{] ?dot ?[)\]}] ?)"
_SPELLED_DOMAIN = re.compile(rf"(?:[A-Za-z0-9][A-Za-z0-9-]{{0,62}}{_DOT}){{1,8}}[A-Za-z]{{2,63}}", re.IGNORECASE)
# The local part before an encoded at sign, reversed. Special characters are encoded too: `ann%2Bnews`.
_ENCODED_LOCAL_REVERSED = re.compile(
    rf"(?:b2%| ?[)\]}}] ?tod ?[(\[{{] ?|[^\W{_CJK}]|[.+-]){{1,64}}|[\w.+-]{{1,64}}",
    re.IGNORECASE,
)
# Encoded characters before the address, as in `%3Cann%40example.com` and `\u003cann\u0040example.com`.
_ENCODED_BEFORE = {"%": re.compile("[0-9A-Fa-f]{2}"), "\\": re.compile("u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2}|[nrt]")}
# The first character precedes the look-behinds, so that the search jumps from candidate to candidate.
_AT = re.compile(
    r"[@%\\&(\[{](?:(?<=@)|(?<=%)40|(?<=\\)(?:[uU]0040|[xX]40)|(?<=&)(?:#0{0,5}64|#[xX]0{0,5}40|commat);"
    r"|(?<=[(\[{]) ?[aA][tT] ?[)\]}] ?)"
)
_CJK_CHARACTER = re.compile(f"[{_CJK}]")
_FILE_ENDINGS = frozenset(
    "png jpg jpeg gif svg webp css js ts tsx jsx json html htm txt pdf zip gz yml yaml".split()  # noqa: SIM905
)
_PIXEL_DENSITY = re.compile(r"[0-9.]+x\.", re.IGNORECASE)
_REMOTE_ACCOUNTS = frozenset({"git", "hg", "svn"})
_LEADING_JUNK = "./'*=&?|{}#!%$^`~-+"

# The first digit precedes the look-behind, so that the search jumps from digit to digit.
_IPV4 = re.compile(r"[0-9](?<![\w.].)[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?![\w]|\.[0-9])", re.ASCII)
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:[0-9A-Fa-f]{1,4}|[0-9]{1,3}(?:\.[0-9]{1,3}){3})?(?![\w:])", re.ASCII)  # fmt: skip  # noqa: E501
# What precedes four dotted numbers that are a version, a section or similar.
_NOT_AN_ADDRESS_BEFORE = re.compile(
    r"(?:\b(?:v|ver|vers|version|versions|versión|versão|versione|versie|release|build|firmware|driver|section"
    r"|sections"
    r"|sec|chapter|clause|article|paragraph|abschnitt|kapitel|ziffer|figure|fig|table|upgrade(?:d)? to"
    r"|update(?:d)? to"
    r"|oid|phiên bản|mục|điều|chương|версия|версии|раздел|пункт)[\s.:#=\"'(-]*|版本|バージョン|버전|章|節|§+ ?"
    r"|[A-Za-z]/|[A-Za-z][-_]"
    r"|[<>~^]=? ?|== ?|, ?v)$",
    re.IGNORECASE,
)
_NOT_A_HOST = ("0.", "127.", "255.", "224.0.0.")


def find_emails(text: str) -> Iterator[Span]:
    """Yields e-mail addresses, including internationalized ones."""
    for sign in _AT.finditer(text):
        at = sign.start()
        if sign[0] == "@":
            start = _local_start(text, at)
        else:
            at -= _spaces_around(text, sign)
            start = _encoded_local_start(text, at)
        if start < at and (end := _domain_end(text, sign.end())) and _is_address(text, start, at, sign.end(), end):
            yield Span(start, end, "EMAIL", rank=5)


def _spaces_around(text: str, sign: re.Match[str]) -> int:
    """Returns 1 if there is a space on both sides, as in `ann (at) example.com`, else 0."""
    return 1 if sign[0][-1] == " " and text[sign.start() - 1 : sign.start()] == " " else 0


def _encoded_local_start(text: str, at: int) -> int:
    local = _ENCODED_LOCAL_REVERSED.match(text[max(0, at - 64) : at][::-1])
    if local is None:
        return at
    start = at - local.end()
    if start and (before := _ENCODED_BEFORE.get(text[start - 1])) and (code := before.match(text, start, at)):
        start = code.end()
    while start < at and text[start] in _LEADING_JUNK:
        start += 1
    return start


def _local_start(text: str, at: int) -> int:
    if at and text[at - 1] == '"':
        quoted = _QUOTED_LOCAL.search(text, max(0, at - 64), at)
        if quoted:
            return quoted.start()
    if at and text[at - 1] in "@ .":
        return at
    before = text[max(0, at - 64) : at][::-1]
    local = _LOCAL_REVERSED.match(before)
    if local is None:
        return at
    start = at - local.end()
    while start < at and text[start] in _LEADING_JUNK:
        start += 1
    return start


def _domain_end(text: str, start: int) -> int:
    end = _host_end(text, start)
    host, _, ending = text[start:end].rpartition(".")
    # `ann@example.org.pdf` is a file named after an address; `logo@2x.min.js` contains no address.
    if ending.lower() in _FILE_ENDINGS and "." in host and not _PIXEL_DENSITY.match(host):
        return start + len(host)
    return end


def _host_end(text: str, start: int) -> int:
    spelled = _SPELLED_DOMAIN.match(text, start)
    return max(_plain_host_end(text, start), spelled.end() if spelled else 0)


def _plain_host_end(text: str, start: int) -> int:
    ascii_domain = _ASCII_DOMAIN.match(text, start)
    if ascii_domain:
        following = text[ascii_domain.end() : ascii_domain.end() + 1]
        if not following.isalpha() or _CJK_CHARACTER.match(following):
            return ascii_domain.end()
    idn = _IDN_DOMAIN.match(text, start)
    return idn.end() if idn else 0


def _is_address(text: str, start: int, at: int, domain_start: int, end: int) -> bool:
    domain = text[domain_start:end]
    if domain.rpartition(".")[2].lower() in _FILE_ENDINGS:
        return False
    # `git@host.org:owner/name` is the location of a repository.
    return not (text[start:at] in _REMOTE_ACCOUNTS and text[end : end + 1] == ":")


def find_ip_addresses(text: str) -> Iterator[Span]:
    """Yields IPv4 and IPv6 addresses of hosts, but not loopback addresses, netmasks or version numbers."""
    yield from _ipv4_addresses(text) if text.count(".") >= 3 else ()
    yield from _ipv6_addresses(text) if text.count(":") >= 2 else ()


def _ipv4_addresses(text: str) -> Iterator[Span]:
    for match in _IPV4.finditer(text):
        value = match[0]
        if value.startswith(_NOT_A_HOST) or not _parses(value):
            continue
        before = text[max(0, match.start() - 24) : match.start()]
        if not _NOT_AN_ADDRESS_BEFORE.search(before) or _labelled_as_address(before):
            yield Span(match.start(), match.end(), "IP", rank=3)


def _ipv6_addresses(text: str) -> Iterator[Span]:
    for match in _IPV6.finditer(text):
        value = match[0]
        groups = [group for group in value.split(":") if group]
        if len(groups) < 3 or not any(c.isdigit() for c in value) or not _parses(value):
            continue
        yield Span(match.start(), match.end(), "IP", rank=3)


def _labelled_as_address(before: str) -> bool:
    return re.search(r"(?:\bip|address|adresse|addr|host|server)(?:v4)?[\s:=]{1,3}$", before, re.IGNORECASE) is not None


def _parses(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True
