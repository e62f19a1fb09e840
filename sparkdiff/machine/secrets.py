"""Removal of secrets from texts that are shown or stored: in URLs, settings and query strings."""

import math
import numbers
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "..."
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[\W_]+")
"""Pattern of the boundaries between the words of a name."""
_SECRET = re.compile(
    # These words count anywhere in a name, because the name of an account or a bucket may follow.
    r"secret(?!ar|ion)|passw(?:or)?d|pass(?:phrase|code)|\bpass\.(?:word|wd|phrase|code)|pwd|credential(?!s?\.provider)|\bjaas\b"
    r"|(?:access|account|api|auth|encryption|keystore|master|private|provider\.client|pvt|secret|shared|signing)\.?key(?!word|space)"
    r"|\bauth\.user\.info\b|(?:token|\bsas)\..*\.(?:blob|dfs)\."
    # These words count only at the end of a name: passRate, tokenLength and authType are not secret.
    r"|(?:token|signature|\b(?:db|key|require|store|user)?pass|\b(?:auth|authorization|bearer|sas|sig))\d*(?:\.(?:value|string|code|\d+))?$"
)
"""Pattern that occurs in the names of settings that hold a secret; names are lower-case words with dots between them.
"""
_SETTING = re.compile(r"""(?:[(\[]["']([\w.-]+)["'],\s*|(?<![\w.-])([\w.-]+)\\?["']?\s*[=:]\s*)(?=[^\s&;,)\]}])""")
"""Pattern of a name and of the text between the name and its value, in a setting, a URL, a mapping or a pair."""
_TOKEN = re.compile(
    r"""\\(["']).*?\\\1|[bru]?"(?:[^"\\]|\\.)*(?:"|$)|[bru]?'(?:[^'\\]|\\.)*(?:'|$)"""
    # In SQL Server's braces, a doubled brace is part of the text.
    r"""|\{(?:[^{}"':]|\}\})*\}|datetime\.\w+\([^)]*\)|[()\[\]{}]|[\s&;,]+|(?:(?:bearer|basic|digest|negotiate|token|apikey)\s+)?"""
    # Other text ends at a punctuation mark, unless more of a word follows; it includes a space if a semicolon ends the
    # value.
    r"""[^\s&;,"'()\[\]{}](?:[^\s&;,"'()\[\]{}\\]|["'()\[\]{}\\,](?=\w)|[ ](?=[^;&"'=]{0,80};))*""",
    re.IGNORECASE | re.DOTALL,
)
"""Pattern of a piece of a value: a quoted text, a bracket, a separator, or other text, perhaps after the name of an
HTTP authentication scheme.
"""
_BEARER = re.compile(r"(\bbearer\s+)[\w.~+/=-]+", re.IGNORECASE)
_LOGINS = (
    # user:secret@host. A secret may contain a slash or an @, so text with a colon ends at the last @. In URLs with ports, digits
    # before a slash are a port.
    re.compile(r"(\bs3[an]?:/{2}|\w:/{2}(?![^\s\"'/@:]*:\d+(?:[/?#]|$)))[^\s\"'/@:]*:[^\s\"']*@", re.IGNORECASE),
    # Text without a colon ends at the first slash; in Azure's URLs it is the name of a container.
    re.compile(r"(?<![\w+.-])((?!abfss?:|wasbs?:)[\w+.-]+:/{2})[^\s\"'/?#@:]+@", re.IGNORECASE),
    re.compile(r"(jdbc:oracle:\w+:)[^\s\"'@]+@", re.IGNORECASE),
)
"""Patterns of the logins in URLs, up to the @; their first group is what stays."""


def redacted(text: str) -> str:
    """The text without secrets: `s3a://...@bucket/rows` for `s3a://user:secret@bucket/rows`, and `password=...`
    whatever the password is.

    More than secrets may be hidden, such as a folder whose name looks like a login. A secret that is recognised is
    hidden completely, never in part.
    """
    for login in _LOGINS:
        text = login.sub(rf"\g<1>{HIDDEN}@", text)
    out, end = "", 0
    for found in _SETTING.finditer(text):
        if found.start() >= end and is_secret(found[1] or found[2]):
            out += text[end : found.end()] + HIDDEN
            end = _end(text, found.end())
    return _BEARER.sub(rf"\g<1>{HIDDEN}", out + text[end:])


def is_secret(name: str) -> bool:
    """True if a setting of this name holds a secret: `fs.s3a.access.key` and `dbPass`, but not `primaryKey` and `passRate`."""
    return _SECRET.search(_WORDS.sub(".", name).lower()) is not None


def _end(text: str, start: int) -> int:
    """End position of the value that begins at `start`: a text, or a bracket with everything up to its closing bracket."""
    depth = 0
    for token in _TOKEN.finditer(text, start):
        depth += (token[0] in ("(", "[", "{")) - (token[0] in (")", "]", "}"))
        if depth <= 0:
            return token.end()
    return len(text)


def without_secret(word: str) -> str:
    """The argument `name=value` of a command line, with a secret in its value replaced by `...`."""
    name, equals, _ = word.partition("=")
    return f"{name}={HIDDEN}" if equals and is_secret(name) else redacted(word)


def hidden(value: Any, name: str = "") -> Any:
    """A copy of plain values, ready for JSON, without secrets, which are recognised by their names and by their form in
    texts.

    All values nested below a secret's name are hidden, too, except None, bool and float values. Floats that are not finite
    become None.

    Args:
        name: the name of the value.
    """
    if isinstance(value, Mapping):
        return {str(key): hidden(inner, name if is_secret(name) else str(key)) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [hidden(inner, name) for inner in value]
    if type(value) not in (bool, int, float) and isinstance(value, numbers.Real):
        value = (
            int(value) if isinstance(value, numbers.Integral) else float(value)
        )  # a numpy number, as an evaluator may return
    if value is None or isinstance(value, (bool, float)):
        return None if isinstance(value, float) and not math.isfinite(value) else value
    if is_secret(name):
        return HIDDEN
    return redacted(value) if isinstance(value, str) else value
