"""Text as Java makes it: numbers, which Double.toString and Float.toString print differently from Java 19 on (JDK-4511638);
lower case and language of the running JVM; and the version of the hashes of a HashingTF.
"""

import functools
import math
import re
import sys
import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np

from sparkdiff.errors import InputError
from sparkdiff.jvm import sessions
from sparkdiff.jvm.java_objects import packages

PRECISIONS: dict[str, type[float] | type[np.float32]] = {"double": float, "float": np.float32}
"""Spark's types whose values releases of Java print differently, with the corresponding types in Python."""
_NUMBER = re.compile(r"-?(\d+(\.\d+)?(E-?\d+)?|Infinity)|NaN", re.ASCII)


def java_release(version: Any) -> int:
    """Release of Java from Java's version text: 17 for 17.0.15, 8 for 1.8.0_402.

    Raises:
        InputError: the text is no version of Java.
    """
    found = re.match(r"(?:1\.)?(\d+)(?![^-+._])", version) if isinstance(version, str) else None
    if found is None or int(found[1]) < 8:
        raise InputError(f"javaVersion={version!r} is no version of Java: give it as text, such as '17' or '21.0.8'")
    return int(found[1])


def number_text(x: float | np.float32, release: int) -> str:
    """Text of a double or float in this release of Java."""
    if math.isnan(x):
        return "NaN"
    sign, size = "-" if math.copysign(1.0, x) < 0 else "", abs(x)
    if size in (0.0, math.inf):
        return f"{sign}Infinity" if size else f"{sign}0.0"
    return sign + _text(size, release)


def texts_of(labels: Iterable[str], kind: str, release: int) -> list[tuple[str, float, str]]:
    """Labels that are numbers, as (label, the number, the text that this release of Java prints for the number).
    `kind` is one of PRECISIONS; the number is rounded to this type.
    """
    with np.errstate(over="ignore"):
        read = {label: PRECISIONS[kind](float(label)) for label in labels if label and _NUMBER.fullmatch(label)}
    return [(label, float(x), number_text(x, release)) for label, x in read.items()]


@functools.lru_cache(maxsize=100_000, typed=True)
def _text(x: float | np.float32, release: int) -> str:
    """Text of a finite number above 0: 0.001, 12.5, 1.0E7, 1.25E-4."""
    number, exponent = _fewest_digits(x) if release >= 19 else _digits_before_19(x)
    digits = str(number)
    point = len(digits) + exponent  # the value is 0.digits * 10^point
    digits = digits.rstrip("0")
    if -3 < point <= 0:
        return f"0.{'0' * -point}{digits}"
    if 0 < point <= 7:
        return f"{digits[:point].ljust(point, '0')}.{digits[point:] or '0'}"
    return f"{digits[0]}.{digits[1:] or '0'}E{point - 1}"


def _fewest_digits(x: float | np.float32) -> tuple[int, int]:
    """The shortest decimal, of two digits or more, that is parsed as x (of several the one nearest to x), as (number,
    exponent) for number * 10^exponent.
    """
    mantissa, _, exponent = np.format_float_scientific(x, min_digits=1).partition("e")
    whole, _, rest = mantissa.partition(".")
    return int(whole + rest), int(exponent) - len(rest)


def _digits_before_19(x: float | np.float32) -> tuple[int, int]:
    """Decimal that Java before 19 prints, as (number, exponent) for number * 10^exponent. It sometimes has a digit too
    many, or is not the nearest one.

    Source: FloatingDecimal.BinaryToASCIIBuffer.dtoa of Java 17, in jdk.internal.math.
    """
    precision, smallest = (24, -149) if isinstance(x, np.float32) else (53, -1074)
    fraction, exponent = math.frexp(x)
    power = exponent - 1  # of two: x is 2 * fraction * 2^power
    gap = power - min(precision, exponent - smallest)  # half the gap to the next number is 2^gap
    numerator, denominator = float(x).as_integer_ratio()
    if denominator == 1 and power <= 62:
        unsure = len(str(1 << max(0, gap - 1))) - 1
        return (numerator + 10**unsure // 2) // 10**unsure, unsure
    gap -= fraction == 0.5  # below a power of two it is half as wide
    place = math.floor((2.0 * fraction - 1.5) * 0.289529654 + 0.176091259 + power * 0.301029995663981)
    return _distinct_digits(numerator, denominator.bit_length() - 1, gap, place)


def _distinct_digits(numerator: int, tiny: int, gap: int, place: int) -> tuple[int, int]:
    """Digits of numerator / 2^tiny, from the place of 10^place on, until they distinguish it from all numbers that are
    2^gap away; as (number, exponent) for number * 10^exponent.
    """
    odd = numerator // (numerator & -numerator)
    small, large = 5 ** max(0, -place), 5 ** max(0, place)
    # Powers of two in the value, in half the gap, and in 10^place, without those that all three have.
    twos = [(numerator // odd).bit_length() - 1 - min(0, place), gap + tiny - min(0, place), tiny + max(0, place)]
    of_rest, of_half, of_one = (n - min(twos) for n in twos)
    rest, half, one = odd * small << of_rest, small << of_half, large << of_one
    # Java computes in int or long where it can, and these may overflow.
    bits = max(odd.bit_length() + (small - 1).bit_length() + of_rest, (10 * one).bit_length())
    exact = bits >= 64
    top = 1 << (bits + 8 if exact else 63 if bits >= 32 else 31)
    low = high = False
    number, last = 0, place + 1
    while not (low or high):
        digit, rest = divmod(rest, one)
        number, last = 10 * number + digit, last - 1
        rest, half = 10 * rest, _java_integer(10 * half, top)
        reach = _java_integer(rest + half, top)
        low, high = rest < half, reach > 10 * one or (exact and reach == 10 * one)
        if half <= 0:  # overflow
            low = high = True
        if last == place and not -3 <= (place if number or high else place - 1) < 8:
            low = high = False  # with an exponent Java writes two digits
    if high and (not low or rest > 5 * one or (rest == 5 * one and number % 2 == 1)):
        number += 1
    return number, last


def _java_integer(x: int, top: int) -> int:
    """The value of x in a Java integer type from -top to top - 1, which overflows by wrapping around."""
    return (x + top) % (2 * top) - top


BETWEEN = "\0"


def lower_case() -> dict[str, str]:
    """Lower case in this JVM of each character (but U+03A3) for which it differs from Python's; their versions of Unicode
    may differ.

    Empty if the JVM is out of reach (Spark Connect).
    """
    return dict(_lower_case(packages())) if sessions.has_constructors() else {}


@functools.lru_cache(maxsize=1)
def _lower_case(jvm: Any) -> tuple[tuple[str, str], ...]:
    # Unassigned characters too: Java may know more than Python.
    asked = [
        c
        for c in map(chr, range(sys.maxunicode + 1))
        if (kind := unicodedata.category(c)) in ("Lu", "Lt", "So", "Nl")
        or c != c.lower()
        or (kind == "Cn" and ord(c) < 0x20000)  # which a later version of Unicode may assign
    ]
    lowered = jvm.org.apache.commons.lang3.StringUtils.lowerCase(BETWEEN.join(asked), jvm.java.util.Locale.ROOT)
    both = zip(asked, lowered.split(BETWEEN), strict=True)
    return tuple((c, low) for c, low in both if c != "\u03a3" and low != c.lower())


def language() -> str:
    """Language of the JVM's locale."""
    if sessions.has_constructors():
        return str(packages().java.util.Locale.getDefault().getLanguage())
    [row] = sessions.session().sql("SELECT java_method('java.util.Locale', 'getDefault')").collect()
    return str(row[0]).partition("_")[0]


def hashes_as_spark_2(stage: Any) -> bool:
    """True if a HashingTF was saved by Spark 2 and therefore still uses that version's hash function."""
    try:
        return bool(stage._java_obj.hashFuncVersion() == 1)
    except sessions.UNREACHABLE:
        return False
