"""Finds national and tax id numbers.

A number is found if it satisfies a rule of `identity_rules`, or if it directly follows the name of an id number.
"""

import itertools
import re
import string
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from shared.privacy.recognizers.identity_rules import NATIONAL, RULES, TAX, IdRule, check_named
from shared.privacy.recognizers.spans import Span

_FROM_FIRST_DIGIT = re.compile("[0-9][0-9A-Za-z]*")
_ASCII_LETTERS = frozenset(string.ascii_letters)
_GLUED_BEFORE = frozenset(string.digits + string.ascii_letters + "_@.,$€£")
_GLUED_AFTER = frozenset("_@")
_MAX_LEADING_LETTERS = 8
_MAX_ATOM_LENGTH = 20
# Skipped, because the groups of a UUID resemble the id numbers of many countries.
_UUID = re.compile(r"(?<![0-9A-Za-z_-])[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}(?![0-9A-Za-z_-])", re.IGNORECASE)
_NEXT_ATOM = re.compile(r"([ ./()+-])([0-9A-Za-z]{1,12})(?![0-9A-Za-z_@])(\)?)")
_LETTERS_BEFORE = re.compile(r"(?<![0-9A-Za-z_])[A-Z]{1,4}[ -]$")
_SHAPE = str.maketrans("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", "9" * 10 + "A" * 26)
_LETTER = re.compile(r"[^\W\d_]")
_MAX_COMPACT_LENGTH = 18
_MAX_ATOMS = 8
_AGAINST = re.compile(
    r"(?:order|invoice|ticket|tracking|parcel|serial|sku|isbn|issn|ean|gtin|imei|part|model|version|build"
    r"|commit|batch|lot"
    r"|transaction|reference|ref|bestell\w*|rechnungs?\w*|auftrags?\w*|artikel\w*|commande|facture|pedido"
    r"|factura|đơn hàng|заказ\w*"
    r"|订单号?|注文番号)[ -]?(?:no|nr|number|num|id|code|nummer|số|n°)?[\s.:#=-]*$"
)
_NUMBER_WORD = (
    r"(?:[ .-]{0,2}(?:card|karte)?[ .-]{0,2}(?:numbers?|no|nr|num|nummer|n°|nº|№|número|numéro|numero|#|id|số"
    r"|code))?"
)
_IS = r"(?:[ ,]{1,2}(?:is|ist|lautet|est|es|è|é|là|jest))?[\s.:#=(>'\"是は은는-]{0,4}$"
_NATIONAL_LABEL = re.compile(
    r"(?:\b(?:passport|national id(?:entity|entification)?|identity card|id card|personal id(?:entity"
    r"|entification)?"
    r"|driver'?s?'? licen[cs]e|driving licen[cs]e|social security|ssn|nino|national insurance"
    r"|personalausweis\w*|ausweis\w*"
    r"|reisepass\w*|führerschein\w*|sozialversicherungs\w*|passeport|carte d'identité|sécurité sociale"
    r"|permis de conduire|dni|nie"
    r"|cédula|pasaporte|curp|carta d'identità|passaporto|codice fiscale|cpf|paszport\w*|dowód osobisty|pesel"
    r"|bsn|personnummer"
    r"|fødselsnummer|henkilötunnus|cccd|cmnd|căn cước(?: công dân)?|chứng minh(?: nhân dân)?|hộ chiếu"
    r"|паспорт\w*|снилс|aadhaar"
    r"|nric|mykad|tc kimlik|hkid|cnic)|身份证(?:号码?)?|身份證(?:號碼?)?|护照(?:号码?)?|護照(?:號碼)?"
    r"|パスポート(?:番号)?|マイナンバー"
    r"|運転免許証(?:番号)?|주민등록번호|여권(?:번호)?|운전면허(?:번호)?)" + _NUMBER_WORD + _IS
)
_TAX_LABEL = re.compile(
    r"(?:\b(?:tax(?:payer)? ?(?:id(?:entification)?|number|no|code|file)|tin|itin|ein|vat(?= ?(?:id|no|nr|num"
    r"|reg|#))(?: reg(?:istration)?)?"
    r"|steuer-?(?:id|nummer|nr|identifikationsnummer)|ust-?id(?:-?nr)?|umsatzsteuer-?id\w*|numéro fiscal|siret"
    r"|siren|nif|cif|cnpj"
    r"|partita iva|p\.? ?iva|nip|regon|mã số thuế|mst|инн|abn|tfn|gstin|utr|rut|ruc|cuit|btw-?nummer)|税号"
    r"|纳税人识别号|統一編號)"
    + _NUMBER_WORD
    + _IS
)  # fmt: skip


def find_identity_numbers(text: str, lower: str) -> Iterator[Span]:
    """Yields national and tax ids. `lower` is the text in lower case, with the same positions."""
    words = _Words(lower)
    uuids = _UUID.finditer(text) if text.count("-") >= 4 else iter(())
    uuid = next(uuids, None)
    for atom in _atoms(text):
        while uuid and uuid.end() <= atom.start:
            uuid = next(uuids, None)
        if uuid and uuid.start() <= atom.start:
            continue
        yield from _labelled(text, lower, atom)
        letters = _LETTERS_BEFORE.search(text, max(0, atom.start - 6), atom.start)
        for first in (atom.start, letters.start()) if letters else (atom.start,):
            yield from _by_rules(text, words, first, atom)


class _Atom(NamedTuple):
    """A run of letters and digits, by its positions."""

    start: int
    end: int


class _Words:
    """Looks for words near numbers. A word that is not in the text at all costs one look-up."""

    def __init__(self, lower: str) -> None:
        self._lower = lower
        self._present: dict[IdRule, tuple[str, ...]] = {}

    def support(self, rule: IdRule, start: int, end: int) -> bool:
        """Whether a word of the rule occurs up to 50 characters before the number or 20 after it."""
        present = self._present.get(rule)
        if present is None:
            present = tuple(word for word in rule.words if word.lstrip("=") in self._lower)
            self._present[rule] = present
        return bool(present) and any(
            self._contains(word, max(0, start - 50), start) or self._contains(word, end, end + 20) for word in present
        )

    def contradict(self, start: int) -> bool:
        """Whether the number is called an order, invoice, version or similar right before it."""
        return _AGAINST.search(self._lower, max(0, start - 50), start) is not None

    def _contains(self, word: str, start: int, end: int) -> bool:
        if word[0] != "=":
            return self._lower.find(word, start, end) != -1
        bare = word[1:]
        position = self._lower.find(bare, start, end)
        while position != -1:
            after = position + len(bare)
            around = self._lower[max(0, position - 1) : position] + self._lower[after : after + 1]
            if not any(character.isalnum() for character in around):
                return True
            position = self._lower.find(bare, position + 1, end)
        return False


def _atoms(text: str) -> Iterator[_Atom]:
    """Yields the runs of ASCII letters and digits that a number may start with."""
    for match in _FROM_FIRST_DIGIT.finditer(text):
        first_digit, end = match.span()
        start = first_digit
        while start and text[start - 1] in _ASCII_LETTERS and first_digit - start <= _MAX_LEADING_LETTERS:
            start -= 1
        few_letters = first_digit - start <= _MAX_LEADING_LETTERS
        glued = text[start - 1 : start] in _GLUED_BEFORE or text[end : end + 1] in _GLUED_AFTER
        if few_letters and end - start <= _MAX_ATOM_LENGTH and not glued:
            yield _Atom(start, end)


def _by_rules(text: str, words: _Words, first: int, atom: _Atom) -> Iterator[Span]:
    """Yields the id numbers that start at `first`, with the atom and up to 7 more, joined by separators."""
    compact = re.sub("[ -]", "", text[first : atom.end]).upper()
    end = atom.end
    for _ in range(_MAX_ATOMS):
        if len(compact) > _MAX_COMPACT_LENGTH:
            return
        for rule in _rules_by_shape().get(compact.translate(_SHAPE), ()):
            if _is_valid(rule, compact, text, words, first, end):
                yield Span(first, end, rule.kind, rank=4 if rule.alone else 3)
        following = _NEXT_ATOM.match(text, end)
        if following is None:
            return
        compact += following[2].upper()
        end = following.end() if following[1] == "(" else following.end(2)


def _is_valid(rule: IdRule, compact: str, text: str, words: _Words, start: int, end: int) -> bool:
    if words.support(rule, start, end):
        return check_named(rule.check)(compact)
    if rule.alone is None or not rule.alone.fullmatch(text, start, end) or words.contradict(start):
        return False
    return check_named(rule.check)(compact)


def _labelled(text: str, lower: str, atom: _Atom) -> Iterator[Span]:
    """Yields a number of any form that directly follows the name of an id number."""
    if not _LETTER.search(lower, max(0, atom.start - 8), atom.start):
        return
    end = atom.end
    while following := _NEXT_ATOM.match(text, end):
        digits = sum(character.isdigit() for character in text[atom.start : end])
        joined = following[1] in "-./" or (digits < 6 and following[1] == " ")
        if end - atom.start > 26 or not joined or not any(character.isdigit() for character in following[2]):
            break
        end = following.end(2)
    value = text[atom.start : end]
    if sum(character.isdigit() for character in value) < 5 or not 6 <= len(value) <= 26:
        return
    before = lower[max(0, atom.start - 50) : atom.start]
    for label, kind in ((_NATIONAL_LABEL, NATIONAL), (_TAX_LABEL, TAX)):
        if label.search(before):
            yield Span(atom.start, end, kind, rank=1)


@cache
def _rules_by_shape() -> dict[str, tuple[IdRule, ...]]:
    """Returns the rules by shape, with every `*` expanded to a letter and a digit."""
    by_shape: dict[str, tuple[IdRule, ...]] = {}
    for rule in RULES:
        for shape in rule.shapes:
            choices = [("A", "9") if character == "*" else (character,) for character in shape]
            for concrete in map("".join, itertools.product(*choices)):
                by_shape[concrete] = (*by_shape.get(concrete, ()), rule)
    return by_shape
