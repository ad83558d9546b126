"""Checks of id numbers: python-stdnum's, loaded when first needed, and the few that it does not have."""

import importlib
import re
from collections.abc import Callable
from functools import cache

_NINO = re.compile(r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z][0-9]{6}[A-D]")
_TW_LETTERS = "ABCDEFGHJKLMNPQRSTUVXYWZIO"
_LETTER_VALUE = {letter: str(number) for number, letter in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZ", start=1)}


def _nino(number: str) -> bool:
    return _NINO.fullmatch(number) is not None


def _snils(number: str) -> bool:
    total = sum(weight * int(digit) for weight, digit in zip(range(9, 0, -1), number, strict=False))
    return total % 101 % 100 == int(number[9:])


def _hkid(number: str) -> bool:
    letters, digits, check = number[:-7], number[-7:-1], number[-1]
    if not (letters.isalpha() and digits.isdigit()):
        return False
    values = [36] * (2 - len(letters)) + [ord(letter) - 55 for letter in letters] + [int(digit) for digit in digits]
    total = sum(weight * value for weight, value in zip(range(9, 1, -1), values, strict=True))
    return "0123456789A"[-total % 11] == check


def _tw_id(number: str) -> bool:
    letter = _TW_LETTERS.index(number[0]) + 10
    total = letter // 10 + letter % 10 * 9
    total += sum(weight * int(digit) for weight, digit in zip((8, 7, 6, 5, 4, 3, 2, 1, 1), number[1:], strict=True))
    return number[1] in "1289" and total % 10 == 0


def _sg_nric(number: str) -> bool:
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
    return 1 <= int(number[:3]) <= 96 and number[3] in "0123"


def _de_social(number: str) -> bool:
    day = int(number[2:4])
    if not (1 <= day <= 31 or 51 <= day <= 81) or not 0 <= int(number[4:6]) <= 12:
        return False
    digits = number[:8] + _LETTER_VALUE[number[8]].zfill(2) + number[9:11]
    weighted = [int(d) * w for d, w in zip(digits, (2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1), strict=True)]
    return sum(value // 10 + value % 10 for value in weighted) % 10 == int(number[11])


_OWN: dict[str, Callable[[str], bool]] = {
    "own.nino": _nino,
    "own.snils": _snils,
    "own.hkid": _hkid,
    "own.tw_id": _tw_id,
    "own.sg_nric": _sg_nric,
    "own.cccd": _cccd,
    "own.de_social": _de_social,
}


@cache
def check_named(name: str) -> Callable[[str], bool]:
    """The check of that name: number without separators, in upper case -> whether it is a valid one."""
    own = _OWN.get(name)
    if own is not None:
        return own
    is_valid: Callable[[str], bool] = importlib.import_module(f"stdnum.{name}").is_valid

    def valid(number: str) -> bool:
        try:
            return is_valid(number)
        except (LookupError, ValueError):
            # Its tables do not know every region that a number can name.
            return False

    return valid
