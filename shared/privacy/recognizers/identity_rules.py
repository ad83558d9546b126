"""Rules for national and tax id numbers: their shapes, their check digits, and the words that name them."""

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

NATIONAL, TAX = "NATIONAL_ID", "TAX_ID"
_ALWAYS = r".+"
_NINO = re.compile(r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z][0-9]{6}[A-D]")
_TW_LETTERS = "ABCDEFGHJKLMNPQRSTUVXYWZIO"
_LETTER_VALUE = {letter: str(number) for number, letter in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZ", start=1)}


@dataclass(frozen=True, eq=False)
class IdRule:
    """A kind of id number.

    `kind` is NATIONAL or TAX. `check` names the validity check for `check_named`. `shapes` are the possible forms
    without separators: `9` for a digit, `A` for a letter, `*` for either. `words` are lower-case words that name the
    number nearby; with `=` in front they count only as whole words. `alone` matches a number with separators that needs
    no word nearby; None if it always needs one.
    """

    kind: str
    check: str
    shapes: tuple[str, ...]
    words: tuple[str, ...]
    alone: re.Pattern[str] | None


@cache
def check_named(name: str) -> Callable[[str], bool]:
    """Returns the check `name`: `own.*` from this module, else from `stdnum`.

    A check takes a number without separators in upper case, and returns whether it is valid.
    """
    own = _OWN_CHECKS.get(name)
    if own is not None:
        return own
    is_valid: Callable[[str], bool] = importlib.import_module(f"stdnum.{name}").is_valid

    def valid(number: str) -> bool:
        try:
            return is_valid(number)
        except (LookupError, ValueError):
            # Some modules raise for regions that are missing from their tables.
            return False

    return valid


def _nino(number: str) -> bool:
    """United Kingdom: National Insurance number."""
    return _NINO.fullmatch(number) is not None


def _snils(number: str) -> bool:
    """Russia: pension insurance number."""
    total = sum(weight * int(digit) for weight, digit in zip(range(9, 0, -1), number, strict=False))
    return total % 101 % 100 == int(number[9:])


def _hkid(number: str) -> bool:
    """Hong Kong: identity card."""
    letters, digits, check = number[:-7], number[-7:-1], number[-1]
    if not (letters.isalpha() and digits.isdigit()):
        return False
    values = [36] * (2 - len(letters)) + [ord(letter) - 55 for letter in letters] + [int(digit) for digit in digits]
    total = sum(weight * value for weight, value in zip(range(9, 1, -1), values, strict=True))
    return "0123456789A"[-total % 11] == check


def _tw_id(number: str) -> bool:
    """Taiwan: national id and residence permit."""
    letter = _TW_LETTERS.index(number[0]) + 10
    total = letter // 10 + letter % 10 * 9
    total += sum(weight * int(digit) for weight, digit in zip((8, 7, 6, 5, 4, 3, 2, 1, 1), number[1:], strict=True))
    return number[1] in "1289" and total % 10 == 0


def _sg_nric(number: str) -> bool:
    """Singapore: identity card and foreign identification number."""
    total = sum(weight * int(digit) for weight, digit in zip((2, 7, 6, 5, 4, 3, 2), number[1:8], strict=True))
    match number[0]:
        case "S" | "T":
            return "JZIHGFEDCBA"[(total + 4 * (number[0] == "T")) % 11] == number[8]
        case "F" | "G":
            return "XWUTRQPNMLK"[(total + 4 * (number[0] == "G")) % 11] == number[8]
        case "M":
            return "KLJNPQRTUWX"[10 - (total + 3) % 11] == number[8]
        case _:
            return False


def _cccd(number: str) -> bool:
    """Vietnam: citizen id, which starts with the province and the century."""
    return 1 <= int(number[:3]) <= 96 and number[3] in "0123"


def _de_social(number: str) -> bool:
    """Germany: social insurance number, which contains the date of birth."""
    day = int(number[2:4])
    if not (1 <= day <= 31 or 51 <= day <= 81) or not 0 <= int(number[4:6]) <= 12:
        return False
    digits = number[:8] + _LETTER_VALUE[number[8]].zfill(2) + number[9:11]
    weighted = [int(d) * w for d, w in zip(digits, (2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1), strict=True)]
    return sum(value // 10 + value % 10 for value in weighted) % 10 == int(number[11])


_OWN_CHECKS: dict[str, Callable[[str], bool]] = {
    "own.nino": _nino,
    "own.snils": _snils,
    "own.hkid": _hkid,
    "own.tw_id": _tw_id,
    "own.sg_nric": _sg_nric,
    "own.cccd": _cccd,
    "own.de_social": _de_social,
}


def _rule(kind: str, check: str, shapes: str, words: str, alone: str = "") -> IdRule:
    """Builds a rule from shapes separated by spaces and words separated by `|`."""
    return IdRule(kind, check, tuple(shapes.split()), tuple(words.split("|")), re.compile(alone) if alone else None)


RULES: tuple[IdRule, ...] = (
    # Americas
    _rule(NATIONAL, "us.ssn", "999999999", "ssn|social security|=social", r"\d{3}-\d{2}-\d{4}"),
    _rule(TAX, "us.itin", "999999999", "itin|taxpayer|tax id", r"9\d\d-\d{2}-\d{4}"),
    _rule(TAX, "us.ein", "999999999", "=ein|employer id|tax id|=fein"),
    _rule(NATIONAL, "ca.sin", "999999999", "=sin|social insurance|=nas|assurance sociale"),
    _rule(TAX, "ca.bn", "999999999 999999999AA9999", "business number|=bn|=gst|=hst"),
    _rule(NATIONAL, "br.cpf", "99999999999", "=cpf", r"\d{3}\.\d{3}\.\d{3}-\d{2}"),
    _rule(TAX, "br.cnpj", "99999999999999", "=cnpj", r"\d{2}\.\d{3}\.\d{3}/\d{4}-\d{2}"),
    _rule(NATIONAL, "mx.curp", "AAAA999999AAAAAA*9", "curp", _ALWAYS),
    _rule(TAX, "mx.rfc", "AAAA999999*** AAA999999***", "=rfc"),
    _rule(TAX, "ar.cuit", "99999999999", "cuit|cuil", r"\d{2}-\d{8}-\d"),
    _rule(NATIONAL, "ar.dni", "99999999 9999999", "=dni|documento nacional"),
    _rule(NATIONAL, "cl.rut", "999999999 99999999A 99999999 9999999A", "=rut|=run",
          r"\d{1,2}\.\d{3}\.\d{3}-[\dkK]"),
    _rule(TAX, "co.nit", "9999999999 999999999", "=nit"),
    _rule(TAX, "pe.ruc", "99999999999", "=ruc"),
    _rule(NATIONAL, "ec.ci", "9999999999", "cédula|cedula"),
    _rule(TAX, "ec.ruc", "9999999999999", "=ruc"),
    _rule(TAX, "uy.rut", "999999999999", "=rut"),
    # British Isles
    _rule(NATIONAL, "own.nino", "AA999999A", "national insurance|=nino|=nin|ni no", _ALWAYS),
    _rule(NATIONAL, "gb.nhs", "9999999999", "=nhs"),
    _rule(TAX, "gb.utr", "9999999999", "=utr|taxpayer reference"),
    _rule(TAX, "gb.vat", "999999999 AA999999999", "=vat", r"GB[ \d]+"),
    _rule(NATIONAL, "ie.pps", "9999999A 9999999AA", "=pps|=ppsn|personal public", r"\d{7}[A-W][A-IW]"),
    # German-speaking
    _rule(TAX, "de.idnr", "99999999999", "steuer|idnr|tax id|=tin", r"\d{2} \d{3} \d{3} \d{3}"),
    _rule(TAX, "de.stnr", "9999999999 99999999999 9999999999999",
          "steuernummer|steuer-nummer|st-nr|st.-nr|stnr|tax number"),
    _rule(TAX, "de.vat", "AA999999999", "ust|umsatzsteuer|=vat", r"DE ?[\d ]+"),
    _rule(NATIONAL, "own.de_social", "99999999A999",
          "sozialversicherung|rentenversicherung|sv-nummer|svnummer|rvnr", r"\d{2} ?\d{6} ?[A-Z] ?\d{3}"),
    _rule(NATIONAL, "at.vnr", "9999999999", "sozialversicherung|svnr|sv-nummer|svnummer|=svn"),
    _rule(TAX, "at.uid", "AAA99999999", "uid|ust", _ALWAYS),
    _rule(NATIONAL, "ch.ssn", "9999999999999", "ahv|avs", r"756[.\d]+"),
    _rule(TAX, "ch.uid", "AAA999999999", "uid|=ide", r"CHE.+"),
    # Benelux, France
    _rule(NATIONAL, "nl.bsn", "999999999", "=bsn|burgerservice|sofi"),
    _rule(TAX, "nl.btw", "999999999A99 AA999999999A99", "btw|vat", r"NL.+"),
    _rule(NATIONAL, "be.nn", "99999999999", "rijksregister|registre national|=nn|=insz|niss",
          r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}"),
    _rule(TAX, "be.vat", "9999999999 AA9999999999", "btw|tva|vat|ondernemings", r"BE.+"),
    _rule(NATIONAL, "fr.nir", "999999999999999 99999A999999999",
          "sécurité sociale|securite sociale|=nir|=sécu", _ALWAYS),
    _rule(TAX, "fr.nif", "9999999999999", "fiscal|=spi|=nif|impôt"),
    _rule(TAX, "fr.siret", "99999999999999", "siret"),
    _rule(TAX, "fr.siren", "999999999", "siren|=rcs"),
    _rule(TAX, "fr.tva", "AA**999999999", "tva", r"FR.+"),
    _rule(TAX, "lu.tva", "AA99999999", "tva|vat", r"LU.+"),
    # Southern Europe
    _rule(NATIONAL, "es.dni", "99999999A", "=dni|=nif", r"\d{8}-?[A-Z]|\d{2}\.\d{3}\.\d{3}-?[A-Z]"),
    _rule(NATIONAL, "es.nie", "A9999999A", "=nie", r"[XYZ]-?\d{7}-?[A-Z]"),
    _rule(TAX, "es.cif", "A99999999 A9999999A", "=cif|=nif", r"[ABEH]-?\d{8}"),
    _rule(NATIONAL, "it.codicefiscale", "AAAAAA99A99A999A", "codice fiscale|=cf|=c.f", _ALWAYS),
    _rule(TAX, "it.iva", "99999999999 AA99999999999", "iva|vat", r"IT.+"),
    _rule(TAX, "pt.nif", "999999999", "=nif|contribuinte|fiscal"),
    _rule(NATIONAL, "pt.cc", "999999999**9", "cartão de cidadão|=cc", r"\d{8} ?\d ?[A-Z]{2}\d"),
    _rule(NATIONAL, "gr.amka", "99999999999", "amka|αμκα"),
    _rule(TAX, "gr.vat", "999999999", "αφμ|=afm|vat"),
    _rule(NATIONAL, "tr.tckimlik", "99999999999", "kimlik|=tck|=tckn|=tc|=t.c"),
    _rule(TAX, "tr.vkn", "9999999999", "vergi|=vkn"),
    # Nordics and Baltics
    _rule(NATIONAL, "se.personnummer", "9999999999 999999999999", "personnummer|samordningsnummer",
          r"(?:\d{2})?\d{6}[-+]\d{4}"),
    _rule(TAX, "se.orgnr", "9999999999", "orgnr|org-nr|org.nr|org.-nr|organisationsnummer"),
    _rule(NATIONAL, "no.fodselsnummer", "99999999999", "fødselsnummer|personnummer|fnr", r"\d{6} ?\d{5}"),
    _rule(TAX, "no.orgnr", "999999999", "orgnr|org-nr|org.nr|organisasjonsnummer"),
    _rule(NATIONAL, "dk.cpr", "9999999999", "=cpr|personnummer"),
    _rule(TAX, "dk.cvr", "99999999", "=cvr|se-nr"),
    _rule(NATIONAL, "fi.hetu", "9999999999* 999999A999*", "henkilötunnus|hetu", r"\d{6}[-+A-FU-Y]\d{3}[0-9A-Z]"),
    _rule(TAX, "fi.ytunnus", "99999999", "ytunnus|y-tunnus", r"\d{7}-\d"),
    _rule(NATIONAL, "ee.ik", "99999999999", "isikukood"),
    _rule(NATIONAL, "lt.asmens", "99999999999", "asmens kod"),
    _rule(NATIONAL, "lv.pvn", "99999999999", "personas kod"),
    _rule(NATIONAL, "is_.kennitala", "9999999999", "kennital"),
    # Central and eastern Europe
    _rule(NATIONAL, "pl.pesel", "99999999999", "pesel"),
    _rule(TAX, "pl.nip", "9999999999", "=nip", r"\d{3}-\d{3}-\d{2}-\d{2}"),
    _rule(TAX, "pl.regon", "999999999 99999999999999", "regon"),
    _rule(NATIONAL, "cz.rc", "999999999 9999999999", "rodné čísl|rodne cisl|=rč", r"\d{6}/\d{3,4}"),
    _rule(TAX, "cz.dic", "AA99999999 AA999999999 AA9999999999", "dič", r"CZ.+"),
    _rule(TAX, "hu.anum", "99999999 AA99999999 99999999999", "adószám"),
    _rule(NATIONAL, "ro.cnp", "9999999999999", "=cnp|cod numeric"),
    _rule(NATIONAL, "bg.egn", "9999999999", "егн|=egn"),
    _rule(NATIONAL, "hr.oib", "99999999999", "=oib"),
    _rule(NATIONAL, "si.emso", "9999999999999", "emšo|emso|jmbg|јмбг"),
    _rule(TAX, "ru.inn", "9999999999 999999999999", "инн|=inn"),
    _rule(NATIONAL, "own.snils", "99999999999", "снилс|snils", r"\d{3}-\d{3}-\d{3} \d{2}"),
    _rule(TAX, "ua.rntrc", "9999999999", "рнокпп|іпн|ідентифікаційн"),
    # Asia
    _rule(NATIONAL, "cn.ric", "999999999999999999 99999999999999999A", "身份证|身份證|resident id", _ALWAYS),
    _rule(TAX, "cn.uscc", "99999999999999999* 99999999AA********", "信用代码|税号|纳税人"),
    _rule(NATIONAL, "own.hkid", "A9999999 A999999A AA9999999 AA999999A", "hkid|hong kong id|身份證",
          r"[A-Z]{1,2}\d{6}\([0-9A]\)"),
    _rule(NATIONAL, "own.tw_id", "A999999999", "身分證|身份證|national id|taiwan id", r"[A-Z][12]\d{8}"),
    _rule(TAX, "tw.ubn", "99999999", "統一編號|統編|=ubn"),
    _rule(NATIONAL, "kr.rrn", "9999999999999", "주민", r"\d{6}-\d{7}"),
    _rule(TAX, "kr.brn", "9999999999", "사업자"),
    _rule(NATIONAL, "jp.in_", "999999999999", "マイナンバー|個人番号|my number"),
    _rule(TAX, "jp.cn", "9999999999999", "法人番号"),
    _rule(NATIONAL, "in_.aadhaar", "999999999999", "aadhaar|aadhar|adhaar|आधार|uidai", r"\d{4} \d{4} \d{4}"),
    _rule(TAX, "in_.pan", "AAAAA9999A", "=pan", r"[A-Z]{5}\d{4}[A-Z]"),
    _rule(TAX, "in_.gstin", "99AAAAA9999A*A*", "gst", _ALWAYS),
    _rule(NATIONAL, "my.nric", "999999999999", "nric|mykad|kad pengenalan|=ic", r"\d{6}-\d{2}-\d{4}"),
    _rule(NATIONAL, "own.sg_nric", "A9999999A", "nric|=fin", r"[STFGM]\d{7}[A-Z]"),
    _rule(TAX, "sg.uen", "99999999A 999999999A A99AA9999A", "=uen"),
    _rule(NATIONAL, "th.pin", "9999999999999", "บัตรประชาชน|เลขประจำตัว|national id|thai id",
          r"\d-\d{4}-\d{5}-\d{2}-\d"),
    _rule(NATIONAL, "id.nik", "9999999999999999", "=nik|=ktp"),
    _rule(TAX, "id.npwp", "999999999999999 9999999999999999", "npwp", r"\d{2}\.\d{3}\.\d{3}\.\d-\d{3}\.\d{3}"),
    _rule(NATIONAL, "own.cccd", "999999999999", "cccd|căn cước|cmnd|chứng minh|citizen id"),
    _rule(TAX, "vn.mst", "9999999999 9999999999999", "mã số thuế|=mst|tax code"),
    _rule(NATIONAL, "pk.cnic", "9999999999999", "cnic", r"\d{5}-\d{7}-\d"),
    _rule(NATIONAL, "il.idnr", "999999999 99999999", "תעודת זהות|teudat|ת.ז|תז|israel id|israeli id"),
    # Africa and Oceania
    _rule(NATIONAL, "za.idnr", "9999999999999", "=rsa|south africa|sa id|id number|identity"),
    _rule(NATIONAL, "eg.tn", "99999999999999", "الرقم القومي|national id|egypt"),
    _rule(TAX, "au.tfn", "999999999 99999999", "=tfn|tax file"),
    _rule(TAX, "au.abn", "99999999999", "=abn|business number", r"\d{2} \d{3} \d{3} \d{3}"),
    _rule(TAX, "nz.ird", "99999999 999999999", "=ird"),
    # VAT numbers of the European Union, with the country code
    _rule(TAX, "eu.vat", "AA99999999 AA999999999 AA9999999999 AA99999999999 AA999999999999 AA9999999A AA9*99999A"
          " AA9999999AA AAA99999999 AA*9999999*", "vat|=ust|ust-id|ustid|umsatzsteuer|tva|iva|btw|moms|=nip|alv"),
)  # fmt: skip
