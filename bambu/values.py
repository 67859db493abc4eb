"""Single values of a Bambu Lab report, checked one by one: a reader takes what JSON held and returns a plain value.

A printer's report is hostile text: any type may stand in any place. A reader returns the value or raises Unreadable;
the report parser then keeps the last good value. Nothing else is ever raised.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import isfinite

TEXT_LIMIT = 200
_HEX = re.compile(r"(?:0[xX])?([0-9A-Fa-f]{1,64})")
_DECIMAL = re.compile(r"[+-]?[0-9]{1,9}(?:\.[0-9]{1,12})?")
_HEX_DIGITS = frozenset("0123456789ABCDEF")
_SIGNAL = re.compile(r"(-?[0-9]{1,3}) ?(?:dBm)?")


class Unreadable(ValueError):
    """This is not a value of the kind that belongs here."""


def whole(given: object) -> int:
    """A whole number written as a number, a whole float or ASCII digits; booleans are not numbers."""
    if type(given) is int:
        return given
    if type(given) is str and len(given) <= 18 and given.isascii() and given.removeprefix("-").isdigit():
        return int(given)
    if type(given) is float and isfinite(given) and given.is_integer() and abs(given) < 1e18:
        return int(given)
    raise Unreadable


def whole_between(lowest: int, highest: int) -> Callable[[object], int]:
    """A reader of whole numbers in this range, both ends included."""

    def read(given: object) -> int:
        number = given if type(given) is int else whole(given)
        if lowest <= number <= highest:
            return number
        raise Unreadable

    return read


count = whole_between(0, 10_000_000)
percent = whole_between(0, 100)


def number(given: object) -> float:
    """A finite number within any printer's temperatures, in what unit the printer uses."""
    if type(given) is str and _DECIMAL.fullmatch(given):
        given = float(given)
    if (type(given) is float or type(given) is int) and -100.0 <= given <= 1000.0:  # NaN fails both comparisons
        return float(given)
    raise Unreadable


def packed_celsius(given: object) -> int:
    """`target << 16 | current` in whole degrees, as newer models send temperatures; left packed."""
    packed = given if type(given) is int else whole(given)
    if 0 <= packed <= 0xFFFFFFFF and packed >> 16 <= 1000 and packed & 0xFFFF <= 1000:
        return packed
    raise Unreadable


def flags(given: object) -> int:
    """A 32-bit field of bits, which may have been sent as a signed number."""
    bits = given if type(given) is int else whole(given)
    if -0x80000000 <= bits <= 0xFFFFFFFF:
        return bits & 0xFFFFFFFF
    raise Unreadable


def hex_flags(given: object) -> int:
    """A field of bits sent as a string of hexadecimal digits, 64 bits or more."""
    if type(given) is str and (match := _HEX.fullmatch(given)):
        return int(match[1], 16)
    raise Unreadable


def text(given: object) -> str:
    """At most TEXT_LIMIT printable characters: no control, direction-changing or half characters, no outer blanks."""
    if type(given) is not str:
        raise Unreadable
    if len(given) > TEXT_LIMIT:
        given = given[:TEXT_LIMIT]
    if not given.isprintable():
        given = "".join(character for character in given if character.isprintable())
    return given.strip()


def identifier(given: object) -> str:
    """An id that some firmware sends as a number; "" for none."""
    if type(given) is int and 0 <= given < 1 << 63:
        given = str(given)
    name = text(given)
    return "" if name == "0" else name


def color(given: object) -> str:
    """`#RRGGBBAA`, upper case; six digits are opaque. "" where the printer sends an empty string."""
    if type(given) is not str:
        raise Unreadable
    digits = given.removeprefix("#").upper()
    if len(digits) in (6, 8) and _HEX_DIGITS.issuperset(digits):
        return f"#{digits}" if len(digits) == 8 else f"#{digits}FF"
    if not given:
        return ""
    raise Unreadable


def spool_uuid(given: object) -> str:
    """32 hexadecimal digits in upper case; "" for all zeros or nothing, a spool without a readable chip."""
    if type(given) is str:
        if not given.strip("0"):
            return ""
        digits = given.upper()
        if len(digits) == 32 and _HEX_DIGITS.issuperset(digits):
            return digits
    raise Unreadable


def switch(given: object) -> bool:
    """A JSON boolean and nothing that merely resembles one."""
    if type(given) is bool:
        return given
    raise Unreadable


def signal_dbm(given: object) -> int:
    """`-48dBm` as a number."""
    if type(given) is str and (match := _SIGNAL.fullmatch(given)):
        return int(match[1])
    raise Unreadable


def diameter_mm(given: object) -> float:
    """A nozzle's diameter in millimetres; single-precision noise (0.4000000059604645) rounded away."""
    diameter = round(number(given), 2)
    if 0 < diameter <= 5:
        return diameter
    raise Unreadable


def mapping(given: object) -> dict[str, object]:
    """A JSON object."""
    if type(given) is dict:
        return given
    raise Unreadable


def entries(given: object) -> list[object]:
    """A JSON array of at most 64 entries: more than any printer has of anything."""
    if type(given) is list and len(given) <= 64:
        return given
    raise Unreadable
