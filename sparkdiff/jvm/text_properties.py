"""Properties of the running JVM that affect text (lower case, language), and the hash version of a HashingTF."""

import functools
import sys
import unicodedata
from typing import Any

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException

from sparkdiff.jvm import sessions
from sparkdiff.jvm.java_objects import packages

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
    except (Py4JError, PySparkException, AttributeError, TypeError):
        return False
