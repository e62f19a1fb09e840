"""Text functions of Java and Spark in Python: lower case, split, hashes, and regular expressions.

Python mostly behaves like Java. Where it doesn't, the functions here follow Java, or raise NotServedError.
"""

import functools
import itertools
import math
import re
import struct
import unicodedata
from collections.abc import Iterator, Mapping

SEED = 42
"""The seed of HashingTF and FeatureHasher."""
_MASK = 0xFFFFFFFF


class NotServedError(Exception):
    """A stage cannot be computed without Spark; the message is the reason. Never leaves the package."""


# Hashes -----------------------------------------------------------------------------------------------------------------


def _mix_k1(k: int) -> int:
    k = (k * 0xCC9E2D51) & _MASK
    k = ((k << 15) | (k >> 17)) & _MASK
    return (k * 0x1B873593) & _MASK


def _mix_h1(h: int, k: int) -> int:
    h ^= _mix_k1(k)
    h = ((h << 13) | (h >> 19)) & _MASK
    return (h * 5 + 0xE6546B64) & _MASK


def _fmix(h: int, length: int) -> int:
    """The hash as a signed 32-bit number."""
    h ^= length
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & _MASK
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & _MASK
    h ^= h >> 16
    return h - (1 << 32) if h >> 31 else h


def hash_of_bytes(content: bytes, spark2: bool = False) -> int:
    """Murmur3 (x86, 32 bits) of these bytes with the seed of HashingTF.

    Args:
        spark2: hash as models saved by Spark 2 do: each byte after the last whole word counts as a word.

    Source: org.apache.spark.unsafe.hash.Murmur3_x86_32.hashUnsafeBytes2, and hashUnsafeBytes.
    """
    h, whole = SEED, len(content) // 4
    for k in struct.unpack_from(f"<{whole}I", content):
        h = _mix_h1(h, k)
    rest = content[4 * whole :]
    if spark2:
        for byte in rest:
            h = _mix_h1(h, byte if byte < 128 else byte - 256 + (1 << 32))
    elif rest:
        h ^= _mix_k1(int.from_bytes(rest, "little"))
    return _fmix(h, len(content))


def hash_of_words(content: int, words: int) -> int:
    """Murmur3 of a number of one or two 32-bit words, the lower word first.

    Source: Murmur3_x86_32.hashInt and hashLong.
    """
    h = SEED
    for i in range(words):
        h = _mix_h1(h, (content >> 32 * i) & _MASK)
    return _fmix(h, 4 * words)


def hash_of_double(x: float) -> int:
    return hash_of_words(0x7FF8000000000000 if math.isnan(x) else struct.unpack("<Q", struct.pack("<d", x))[0], 2)


def hash_of_float(x: float) -> int:
    return hash_of_words(0x7FC00000 if math.isnan(x) else struct.unpack("<I", struct.pack("<f", x))[0], 1)


# Case and words ---------------------------------------------------------------------------------------------------------

_SIGMA = "\u03a3"
_BETWEEN = re.compile("[\u00ad\u2027\"'.]")
"""Characters other than dashes that may stand between two letters of one word."""
_OTHER_CASED = re.compile("[\u02b0-\u02b8\u02c0\u02c1\u02e0-\u02e4\u0345\u037a\u1d2c-\u1d61\u2160-\u217f\u24b6-\u24e9]")
"""Characters that have a case, although their Unicode category is none of Lu, Ll and Lt."""


def lower(text: str, others: Mapping[str, str]) -> str:
    """String.toLowerCase(Locale.ROOT).

    Args:
        others: lower case by character, for the characters that this Java and this Python lower differently because
            their versions of Unicode differ.
    """
    if not others or not (found := others.keys() & set(text)):
        return _lower(text)
    parts = re.split(f"([{re.escape(''.join(sorted(found)))}])", text)
    return "".join(others[p] if p in others else _lower(p) for p in parts)


def _lower(text: str) -> str:
    if _SIGMA not in text:
        return text.lower()
    parts = text.split(_SIGMA)
    out, at = [parts[0].lower()], 0
    for before, after in itertools.pairwise(parts):
        at += len(before)
        # Source: java.lang.ConditionalSpecialCasing.isFinalCased.
        ends_word = _has_cased_letter(text, at, -1) and not _has_cased_letter(text, at, 1)
        out += ["\u03c2" if ends_word else "\u03c3", after.lower()]
        at += 1
    return "".join(out)


def _has_cased_letter(text: str, at: int, step: int) -> bool:
    """True if the word, as Java delimits words, has a cased letter on this side of the letter at `at`.

    Source: java.lang.ConditionalSpecialCasing.isCased.
    """
    i = at + step
    while 0 <= i < len(text):
        c, kind = text[i], unicodedata.category(text[i])
        if kind in ("Lu", "Ll", "Lt") or _OTHER_CASED.match(c):
            return True
        if kind == "Pd" or _BETWEEN.match(c):
            near, beyond = _skip_marks(text, i - step, -step), _skip_marks(text, i + step, step)
            if not (_is_letter(text, near) and _is_letter(text, beyond)):
                return False
            i = beyond
            continue
        if kind[0] not in "LN" and kind not in ("Mn", "Me", "Cf", "Mc"):
            return False
        i += step
    return False


def _skip_marks(text: str, i: int, step: int) -> int:
    while 0 <= i < len(text) and unicodedata.category(text[i]) in ("Mn", "Me", "Cf"):
        i += step
    return i


def _is_letter(text: str, i: int) -> bool:
    return 0 <= i < len(text) and unicodedata.category(text[i])[0] == "L"


def matches(pattern: "re.Pattern[str]", text: str) -> "Iterator[re.Match[str]]":
    """Successive matches of Matcher.find, which after an empty match continues one character further.

    Python's finditer would first look for a nonempty match at the place of the empty one.
    """
    at = 0
    while at <= len(text) and (match := pattern.search(text, at)) is not None:
        yield match
        at = match.end() + (match.start() == match.end())


def split(pattern: "re.Pattern[str]", text: str) -> list[str]:
    """Parts of a text, like Java's Pattern.split.

    Empty strings at the end are dropped, and so is an empty string at the beginning that comes from an empty match.
    """
    out, start = [], 0
    for match in matches(pattern, text):
        if match.end() == 0:
            continue
        out.append(text[start : match.start()])
        start = match.end()
    if not out:
        return [text]
    out.append(text[start:])
    while out and not out[-1]:
        out.pop()
    return out


def units(text: str) -> int:
    """Length of a text in UTF-16 units, like Java's String.length: characters beyond U+FFFF count twice."""
    return len(text) + sum(c > "\uffff" for c in text) if not text.isascii() else len(text)


# Regular expressions ----------------------------------------------------------------------------------------------------

_ENDS = "\\n\\r\\u0085\\u2028\\u2029"
_DOLLAR = "(?=(?:\\r\\n|(?<!\\r)\\n|[\\r\\u0085\\u2028\\u2029])?\\Z)"
_ESCAPES = {**{c: f"\\{c}" for c in "sSdDwWtnrfaA"}, "z": "\\Z", "e": "\\x1b"}
_POSIX = {
    "Lower": "a-z",
    "Upper": "A-Z",
    "Alpha": "a-zA-Z",
    "Digit": "0-9",
    "Alnum": "a-zA-Z0-9",
    "Punct": r"!-/:-@\[-`{-~",
    "Graph": "!-~",
    "Print": " -~",
    "Blank": r" \t",
    "Cntrl": r"\x00-\x1f\x7f",
    "XDigit": "0-9a-fA-F",
    "ASCII": r"\x00-\x7f",
    "Space": r" \t\n\x0b\f\r",
}


class _Pattern:
    """Translator of a Java pattern, read from left to right, to a Python pattern that matches the same texts."""

    def __init__(self, java: str):
        self.java, self.at, self.out = java, 0, [""]

    def refuse(self, what: str) -> NotServedError:
        return NotServedError(f"Python's regular expressions have no equal of {what} in the pattern {self.java!r}")

    def next(self) -> str:
        c = self.java[self.at]
        self.at += 1
        return c

    def starts(self, text: str) -> bool:
        return self.java.startswith(text, self.at)

    def to_python(self) -> str:
        while self.at < len(self.java):
            c = self.next()
            if c == "\\":
                self.out.append(self.escape(False))
            elif c == "[":
                self.out.append(self.set())
            elif c == ".":
                self.out.append(f"[^{_ENDS}]")
            elif c == "$":
                self.out.append(_DOLLAR)
            else:
                self.out.append(self.plain(c))
        return "".join(self.out)

    def plain(self, c: str) -> str:
        if c == "(" and self.starts("?") and not self.starts(("?:", "?=", "?!", "?<=", "?<!")):  # type: ignore[arg-type]
            raise self.refuse(repr(self.java[self.at - 1 : self.at + 3]))
        if c == "{" and not re.match(r"\d+(,\d*)?\}", self.java[self.at :]):
            raise self.refuse("a brace that is no quantifier")
        if c in "*+?}" and self.starts("+"):
            raise self.refuse(f"the possessive {c}+")
        return re.escape(c) if c in "#&~" else c

    def escape(self, inside: bool) -> str:
        if self.at >= len(self.java):
            raise self.refuse("a lone backslash")
        c = self.next()
        if c in "pP":
            return self.posix(c == "P", inside)
        if c == "u" and (half := re.match("[dD]([89abAB][0-9a-fA-F]{2}|[c-fC-F][0-9a-fA-F]{2})", self.java[self.at :])):
            return self.pair(half[0])
        if c in "xu" and re.match("[0-9a-fA-F]{2}" * (1 if c == "x" else 2), self.java[self.at :]):
            return f"\\{c}"
        if c.isalnum() and (c not in _ESCAPES or (inside and c in "Az")):
            raise self.refuse(f"\\{c}")
        return _ESCAPES.get(c) or re.escape(c)

    def pair(self, first: str) -> str:
        """Escape of the character that two escapes of surrogate halves encode; Java reads these two escapes as one
        character.
        """
        second = re.compile(r"\\u([dD][c-fC-F][0-9a-fA-F]{2})").match(self.java, self.at + 4)
        if int(first, 16) >= 0xDC00 or second is None:
            raise self.refuse(f"the half of a character, \\u{first},")
        self.at = second.end()
        code = 0x10000 + ((int(first, 16) - 0xD800) << 10) + int(second[1], 16) - 0xDC00
        return f"\\U{code:08x}"

    def posix(self, negated: bool, inside: bool) -> str:
        found = re.compile(r"\{(\w+)\}").match(self.java, self.at)
        if not found or found[1] not in _POSIX or (negated and inside):
            raise self.refuse(f"\\{'P' if negated else 'p'}{found[0] if found else ''}")
        self.at = found.end()
        return _POSIX[found[1]] if inside else f"[{'^' * negated}{_POSIX[found[1]]}]"

    def set(self) -> str:
        out = "[^" if self.starts("^") else "["
        self.at += len(out) - 1
        first = self.at
        while self.at < len(self.java):
            c = self.next()
            if c == "]" and self.at > first + 1:
                return out + "]"
            if c in "[]" or (c == "&" and self.starts("&")):
                raise self.refuse("a set within a set")
            out += self.escape(True) if c == "\\" else c if c == "-" else re.escape(c)
        raise self.refuse("an open bracket")


@functools.lru_cache(maxsize=256)
def pattern(java: str) -> "re.Pattern[str]":
    """Python pattern that has the same matches in every text as the pattern `java` has in Java.

    Raises:
        NotServedError: the pattern uses a feature without an equivalent in Python.
    """
    try:
        return re.compile(_Pattern(java).to_python(), re.ASCII)
    except (re.error, OverflowError) as e:
        raise NotServedError(f"Python cannot read the pattern {java!r}: {e}") from e
