"""Finds phone numbers: international ones by numbering plan, national ones by plan, grouping and surrounding words."""

import re
from collections.abc import Iterator
from enum import IntEnum
from functools import lru_cache

import phonenumbers
from phonenumbers import PhoneMetadata, PhoneNumberFormat

from shared.privacy.recognizers.spans import Span

_CANDIDATE = re.compile(
    # The first character precedes the look-behinds, so that the search jumps from candidate to candidate.
    r"[(+0-9](?<![^\W\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af].)(?<![@#$€£¥./\\+-].)(?<![0-9][,:].)"
    r"(?<![0-9A-Za-z_]\(.)(?:(?<=\()(?:\+ ?)?[0-9]|(?<=\+) ?[0-9]|(?<=[0-9]))(?:[ ./()-]{0,2}[0-9]){6,17}"
    r"(?![0-9A-Za-z_%@]|[.,:][0-9]|-[0-9]{1,3}\b| ?[€$£¥])"
)
_GROUP_BREAK = re.compile(r"[ ./()-]+")


class Context(IntEnum):
    """What the words before a number indicate, in ascending order of evidence for a phone number."""

    OTHER_NUMBER = 0
    NONE = 1
    NEARBY_WORD = 2
    LABEL = 3


_LABEL = re.compile(
    r"(?:\b(?:tele?phones?|phones?|tel|tél|telf?|mobile?s?|mob|cell(?:phone|ular)?|fax|whats ?app|sms|hotline"
    r"|landline|signal"
    r"|telefon\w*|handy(?:nummer)?|mobilfunk\w*|mobiltelefon\w*|rufnummer|festnetz|durchwahl|téléphone|portable"
    r"|teléfono|telefono"
    r"|móvil|celular|cellulare|telemóvel|telefone|telefoon\w*|gsm|puhelin\w*|mobilnummer|komórk\w*|cep|zalo|sđt"
    r"|sdt|đt"
    r"|điện thoại|di động|тел|телефон\w*|моб|мобильн\w*)\b|电话(?:号码)?|電話(?:番号|號碼)?|手机(?:号码?)?|手機"
    r"|携帯(?:番号)?|전화(?:번호)?"
    r"|휴대폰|핸드폰|연락처|微信|هاتف|جوال|טלפון|โทร\w*|फ़?ोन"
    r"|\b(?:call|text|ring|reach|contact|message|dial)(?: (?:me|us|him|her|them))? (?:at|on|under)\b"
    r"|\b(?:my|your|his|her|our|their|mein\w*|dein\w*|seine?|ihre?|unsere?|mon|ton|votre|son|notre|mi|tu|su|meu"
    r"|seu|il mio)"
    r" (?:numbers?|nummer|numéro|número|numero)\b|\bsố(?: của (?:tôi|mình|em|anh|chị))?|我的号码|私の番号|내 번호)"
    r"(?:[ -]?(?:numbers?|no|nr|num|nummer|number|numéro|número|numero|số|№))?"
    r"(?:[ ,]{1,2}(?:is|at|on|ist|lautet|est|le|es|el|é|là|số|to|at:|jest))?[\s.:=(»>'\"是は은는를]*$",
    re.IGNORECASE,
)
_NEARBY_WORDS = re.compile(
    r"\b(?:call|called|calling|ring|dial|reach|contact|text me|message me|phone|tel|mobile|cell|fax|whatsapp|sms"
    r"|anrufen|ruf\w*|erreich\w*|telefon\w*|handy\w*|appel\w*|joindre|téléphon\w*|portable|llam\w*|llám\w*"
    r"|teléfono|móvil|contact\w*|chiam\w*|cellulare|ligue|ligar|telemóvel|celular|gọi|liên hệ|điện thoại|sđt"
    r"|zadzwo\w*|звон\w*|позвон\w*|тел)\b|电话|電話|手机|手機|拨打|打给|联系|携帯|전화|연락",
    re.IGNORECASE,
)
_OTHER_NUMBER_WORDS = re.compile(
    r"(?:\b(?:orders?|invoices?|tickets?|cases?|tracking|parcel|shipment|refs?|reference|transaction|serial"
    r"|part|model|article"
    r"|item|sku|ean|gtin|upc|isbn|issn|imei|doi|pid|port|code|zip|version|build|revision|account|acct|customer"
    r"|policy|contract"
    r"|batch|lot|license|licence|id|ids|uuid|key|hash|timestamp|epoch|price|cost|total|amount|sum|budget"
    r"|population|year|years"
    r"|bestell\w*|rechnung\w*|auftrag\w*|sendung\w*|kunden\w*|vertrag\w*|artikel\w*|konto\w*|aktenzeichen|plz"
    r"|preis|betrag"
    r"|commande|facture|suivi|dossier|client|référence|prix|montant|compte|pedido|factura|referencia|cuenta"
    r"|cliente|precio"
    r"|ordine|fattura|pratica|encomenda|fatura|đơn hàng|mã đơn|mã|hóa đơn|giá|заказ\w*|счет\w*|счёт\w*|цена"
    r"|артикул)\b"
    r"|订单号?|注文(?:番号)?|编号|単価|金额|価格|주문번호|№)"
    r"[ -]?(?:numbers?|no|nr|num|nummer|number|numéro|número|numero|id|code|số|is|of|was)?[\s.:#=-]*$",
    re.IGNORECASE,
)
_DATE = re.compile(
    r"(?:(?:19|20)[0-9]{2}[-/. ][0-9]{1,2}[-/. ][0-9]{1,2}|[0-9]{1,2}[-/. ][0-9]{1,2}[-/. ](?:19"
    r"|20)[0-9]{2})(?![0-9])"
)
_YEARS = re.compile(r"(?:(?:19|20)[0-9]{2}[ /-]*){2,}$")
_NORTH_AMERICAN = re.compile(r"(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[ .-])[2-9][0-9]{2}[ .-][0-9]{4}$")
_CHINESE_MOBILE = re.compile(r"1[3-9][0-9][ -][0-9]{4}[ -][0-9]{4}$")
_COUNTING = ("0123456789", "1234567890", "9876543210", "0987654321")
# The regions whose national numbers are recognized, the most populous first.
_REGIONS = tuple(
    word
    for line in (
        "US GB DE FR ES IT VN IN BR MX CN JP KR NL BE CH AT PT PL CZ SE NO DK FI IE GR RO HU TR RU",
        "UA IL AR CO CL PE ID TH PH MY SG HK TW AU NZ ZA NG EG SA AE PK BD",
    )
    for word in line.split()
)
_LETTER = re.compile(r"[^\W\d_]|№")
_EXTENSION = re.compile(r" ?(?:ext\.?|extension|доб\.?|nst\.?|x) ?[0-9]{1,5}(?![0-9A-Za-z])", re.IGNORECASE)


def find_phone_numbers(text: str) -> Iterator[Span]:
    """Yields phone numbers. National ones without context are found only in the usual grouping of their country."""
    for match in _CANDIDATE.finditer(text):
        start, end = match.span()
        if text[start] == "(" and ")" not in match[0]:
            start += 1
        candidate = text[start:end]
        # Try without context first: a valid international number needs none, and reading the context is expensive.
        length = _phone_length(candidate, Context.OTHER_NUMBER) if "+" in candidate else 0
        length = length or _phone_length(candidate, _context(text[max(0, start - 40) : start]))
        if length:
            extension = _EXTENSION.match(text, start + length)
            yield Span(start, extension.end() if extension else start + length, "PHONE", rank=2)


def _context(before: str) -> Context:
    if not _LETTER.search(before):
        return Context.NONE
    if _LABEL.search(before):
        return Context.LABEL
    if _OTHER_NUMBER_WORDS.search(before):
        return Context.OTHER_NUMBER
    return Context.NEARBY_WORD if _NEARBY_WORDS.search(before) else Context.NONE


@lru_cache(maxsize=4096)
def _phone_length(candidate: str, context: Context) -> int:
    """Returns the length of the phone number that `candidate` starts with; 0 if none.

    A date or a count may directly follow the number.
    """
    for _ in range(4):
        if _is_phone(candidate, context):
            return len(candidate)
        shorter = candidate.rstrip("0123456789").rstrip(" ./()-")
        if sum(character.isdigit() for character in shorter) < 7:
            return 0
        candidate = shorter
    return 0


def _is_phone(candidate: str, context: Context) -> bool:
    digits = re.sub(r"\D", "", candidate)
    if candidate.lstrip("(").startswith("+"):
        return _is_international("+" + digits, context)
    if context is Context.OTHER_NUMBER or _DATE.match(candidate) or _YEARS.match(candidate):
        return False
    if digits.startswith("00") and len(digits) >= 11 and _is_international("+" + digits[2:], Context.NONE):
        return True
    if context is Context.LABEL:
        return 7 <= len(digits) <= 15
    if len(set(digits)) < 3 or (digits == candidate and digits in _COUNTING) or "/" in candidate[6:]:
        return False
    if _NORTH_AMERICAN.match(candidate):
        return " " not in candidate.lstrip("1 ").partition(")")[0] or "US" in _regions_of(digits[-10:])
    if context is Context.NEARBY_WORD and 8 <= len(digits) <= 12 and (digits != candidate or len(digits) >= 10):
        return bool(_regions_of(digits, trunk_needed=False))
    if _CHINESE_MOBILE.match(candidate):
        return True
    area_in_brackets = "(" in candidate[:3]
    if digits[0] != "0" and not area_in_brackets:
        return False
    regions = _regions_of(digits, trunk_needed=not area_in_brackets)
    return any(_has_usual_form(region, candidate, digits) for region in regions)


def _is_international(number: str, context: Context) -> bool:
    try:
        parsed = phonenumbers.parse(number, None)
    except phonenumbers.NumberParseException:
        return False
    if phonenumbers.is_valid_number(parsed):
        return True
    # Fictitious numbers (`+1 555 123 4567`) are in no plan but are still meant as phone numbers.
    return context is not Context.OTHER_NUMBER and len(number) > 10 and phonenumbers.is_possible_number(parsed)


def _regions_of(digits: str, trunk_needed: bool = True) -> list[str]:
    """Returns the regions whose numbering plan includes `digits` as a national number.

    `trunk_needed`: where the trunk prefix is 0, the number must start with it.
    """
    found = []
    for region in _REGIONS:
        trunk, pattern = _plan(region)
        national = digits[len(trunk) :] if trunk and digits.startswith(trunk) else digits
        if (national != digits or trunk != "0" or not trunk_needed) and pattern.fullmatch(national):
            found.append(region)
    return found


@lru_cache(maxsize=len(_REGIONS))
def _plan(region: str) -> tuple[str, re.Pattern[str]]:
    metadata = PhoneMetadata.metadata_for_region(region, None)
    if metadata is None or metadata.general_desc is None:
        raise LookupError(region)
    kinds = (metadata.fixed_line, metadata.mobile, metadata.toll_free)
    patterns = [kind.national_number_pattern for kind in kinds if kind and kind.national_number_pattern]
    return metadata.national_prefix or "", re.compile("|".join(f"(?:{pattern})" for pattern in patterns))


def _has_usual_form(region: str, candidate: str, digits: str) -> bool:
    """Whether the number has the usual grouping of its region, or is a mobile number without grouping."""
    parsed = phonenumbers.parse(digits, region)
    if candidate == digits:
        isbn_like = len(digits) == 10 and sum((10 - i) * int(d) for i, d in enumerate(digits)) % 11 == 0
        mobile = phonenumbers.number_type(parsed) == phonenumbers.PhoneNumberType.MOBILE
        return mobile and not isbn_like and 10 <= len(digits) <= 11
    usual = phonenumbers.format_number(parsed, PhoneNumberFormat.NATIONAL)
    groups = _GROUP_BREAK.split(candidate.strip("()"))
    # `0171 1234567` and `0171 / 123 45 67` are accepted too: only the area code must be separate.
    return groups == _GROUP_BREAK.split(usual.strip("()")) or (
        len(groups) >= 2 and groups[0] == _GROUP_BREAK.split(usual.strip("()"))[0]
    )
