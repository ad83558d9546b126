"""Finds payment card numbers (by prefix, length and Luhn check) and IBANs (by country, length and mod 97 check)."""

import re
from collections.abc import Iterator
from functools import lru_cache

from stdnum import luhn

from shared.privacy.recognizers.spans import Span

_LIST_BREAK = r" {0,2}(?:[,/_\t]|\r?\n) {0,2}"
_BREAK = rf"(?:[ .-]{{1,3}}|{_LIST_BREAK})"
# A look-ahead, so that matches may overlap: a number in front of a card must not hide it. The first digit precedes the
# look-behind, so that the search jumps from digit to digit.
_CARD = re.compile(
    r"[0-9](?<![0-9].)(?<![0-9][.].)(?="
    rf"([0-9]{{3}}{_BREAK}[0-9]{{4}}{_BREAK}[0-9]{{4}}{_BREAK}[0-9]{{4}}(?![0-9]))([ .-][0-9]{{3}}(?![0-9]))?"
    rf"|((?<=3)[0-9]{{3}}{_BREAK}[0-9]{{6}}{_BREAK}[0-9]{{4,5}}(?![0-9]))"
    r"|([0-9]{11,18}(?![0-9]))"
    r")"
)
# Part of a name or of another number, unless a word such as "card" is nearby.
_GLUED_BEFORE = re.compile(r"(?:[A-Za-z_]|[0-9],)\Z")
_GLUED_AFTER = re.compile(r"[A-Za-z_]|[.,][0-9]")
_SPLIT_LIKE_A_LIST = re.compile(r"[,/_\t\n]")
_LISTED_BEFORE = re.compile(rf"(?<![0-9])([0-9]{{1,5}}){_LIST_BREAK}\Z")
_LISTED_AFTER = re.compile(rf"{_LIST_BREAK}([0-9]{{1,5}})(?![0-9])")
_CARD_WORDS = re.compile(
    r"card|carte|karte|tarjeta|cart[aã]o|carta|kaart|kort|kart|thẻ|карт|visa|mastercard|amex|maestro|credit"
    r"|debit|\bcc\b"
    r"|kredit|crédit|crédito|卡|カード|카드|بطاقة",
    re.IGNORECASE,
)
_OTHER_NUMBER_WORDS = re.compile(
    r"(?:order|invoice|tracking|parcel|shipment|ticket|reference|ref|transaction|serial|sku|ean|gtin|upc|isbn"
    r"|imei|id"
    r"|bestell\w*|rechnung\w*|auftrag\w*|sendung\w*|commande|facture|suivi|pedido|factura|đơn hàng|mã đơn"
    r"|заказ\w*|订单号?|注文番号"
    r"|timestamp)[\s.:#=-]*(?:no|nr|number|num|id|code|nummer|número|numéro)?[\s.:#=-]*$",
    re.IGNORECASE,
)
# lowest prefix, highest prefix, lengths, whether a word such as "card" must be nearby
_ISSUERS: tuple[tuple[int, int, frozenset[int], bool], ...] = (
    (4, 4, frozenset({16}), False),
    (4, 4, frozenset({13, 19}), True),
    (51, 55, frozenset({16}), False),
    (2221, 2720, frozenset({16}), False),
    (34, 34, frozenset({15}), False),
    (37, 37, frozenset({15}), False),
    (6011, 6011, frozenset({16, 19}), False),
    (644, 649, frozenset({16, 19}), False),
    (65, 65, frozenset({16, 19}), False),
    (300, 305, frozenset({14, 16}), False),
    (36, 36, frozenset({14, 16}), False),
    (38, 39, frozenset({14, 16}), False),
    (3528, 3589, frozenset({16, 17, 18, 19}), False),
    (62, 62, frozenset({16, 17, 18, 19}), False),
    (2200, 2204, frozenset({16, 17, 18, 19}), False),
    (9792, 9792, frozenset({16}), False),
    (508, 508, frozenset({16}), False),
    (81, 82, frozenset({16}), True),
    (506, 506, frozenset({16, 18, 19}), True),
    (50, 50, frozenset({12, 13, 14, 15, 16, 17, 18, 19}), True),
    (56, 58, frozenset({12, 13, 14, 15, 16, 17, 18, 19}), True),
    (63, 63, frozenset({12, 13, 14, 15, 16, 17, 18, 19}), True),
    (67, 67, frozenset({12, 13, 14, 15, 16, 17, 18, 19}), True),
)
# The check digits. The country before them is a look-behind, so that the search jumps from digit to digit.
_IBAN_CHECK = re.compile(r"[0-9](?<=[A-Za-z]{2}.)(?<![0-9A-Za-z][A-Za-z]{2}.)[0-9](?=[ -]?[0-9A-Za-z]{4})")
_IBAN_LENGTHS = dict(
    item.split(":")
    for line in (
        "AD:24 AE:23 AL:28 AT:20 AZ:28 BA:20 BE:16 BG:22 BH:22 BI:27 BR:29 BY:28 CH:21 CR:22 CY:28 CZ:24 DE:22 DJ:27",
        "DK:18 DO:28 EE:20 EG:29 ES:24 FI:18 FK:18 FO:18 FR:27 GB:22 GE:22 GI:23 GL:18 GR:27 GT:28 HR:21 HU:28 IE:22",
        "IL:23 IQ:23 IS:26 IT:27 JO:30 KW:30 KZ:20 LB:28 LC:32 LI:21 LT:20 LU:20 LV:21 LY:25 MC:27 MD:24 ME:22 MK:19",
        "MN:20 MR:27 MT:31 MU:30 NI:28 NL:18 NO:15 OM:23 PK:24 PL:28 PS:29 PT:25 QA:29 RO:24 RS:22 RU:33 SA:24 SC:31",
        "SD:18 SE:24 SI:19 SK:24 SM:27 SO:23 ST:25 SV:28 TL:23 TN:24 TR:26 UA:29 VA:22 VG:24 XK:20",
    )
    for item in line.split()
)


def find_cards(text: str) -> Iterator[Span]:
    """Yields payment card numbers, grouped or not."""
    for match in _CARD.finditer(text):
        # Three digits after 16 grouped ones may belong to the card number, or be its security code.
        for end in {match.end(group) for group in range(1, 5)} - {-1}:
            if _is_card(text, match.start(), end):
                yield Span(match.start(), end, "CARD", rank=6)


def _is_card(text: str, start: int, end: int) -> bool:
    value = text[start:end]
    digits = re.sub(r"\D", "", value)
    certainty = _issuer_certainty(digits)
    if certainty is None or not luhn.is_valid(digits):
        return False
    before, after = text[max(0, start - 40) : start], text[end : end + 25]
    neighbours = _neighbours_in_list(before, after) if _SPLIT_LIKE_A_LIST.search(value) else []
    if any(len(neighbour) == 4 for neighbour in neighbours):
        return False
    if _CARD_WORDS.search(before) or _CARD_WORDS.search(after):
        return True
    if not certainty or neighbours or _GLUED_BEFORE.search(before) or _GLUED_AFTER.match(after):
        return False
    return len(value) > len(digits) or not _OTHER_NUMBER_WORDS.search(before)


def _neighbours_in_list(before: str, after: str) -> list[str]:
    """Returns the numbers that extend a list such as `1111, 2222, 3333, 4444` on either side."""
    found = (_LISTED_BEFORE.search(before), _LISTED_AFTER.match(after))
    return [match[1] for match in found if match]


@lru_cache(maxsize=1024)
def _issuer_certainty(digits: str) -> bool | None:
    """Returns True if prefix and length suffice, False if a word nearby is needed too, None if no issuer matches."""
    found: bool | None = None
    for low, high, lengths, needs_word in _ISSUERS:
        if len(digits) in lengths and low <= int(digits[: len(str(low))]) <= high:
            found = bool(found) or not needs_word
    return found


def find_ibans(text: str) -> Iterator[Span]:
    """Yields IBANs, grouped or not, with the length of their country."""
    for check in _IBAN_CHECK.finditer(text):
        start = check.start() - 2
        length = int(_IBAN_LENGTHS.get(text[start : start + 2].upper(), 0))
        end = _end_of_compact(text, start, length)
        if end and _mod_97_is_right(re.sub("[ -]", "", text[start:end]).upper()):
            yield Span(start, end, "IBAN", rank=8)


def _end_of_compact(text: str, start: int, length: int) -> int:
    """Returns the end of `length` letters and digits after `start`, ignoring single spaces and dashes; 0 if too few."""
    position, seen, gap = start, 0, False
    while seen < length and position < len(text):
        character = text[position]
        if character.isascii() and character.isalnum():
            seen, gap = seen + 1, False
        elif character in " -" and not gap:
            gap = True
        else:
            return 0
        position += 1
    following = text[position : position + 1]
    return position if length and seen == length and not (following.isascii() and following.isalnum()) else 0


def _mod_97_is_right(compact: str) -> bool:
    rearranged = compact[4:] + compact[:4]
    return int("".join(str(int(character, 36)) for character in rearranged)) % 97 == 1
