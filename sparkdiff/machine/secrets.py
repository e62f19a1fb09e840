"""Removal of secrets from texts that are shown or stored: in URLs, settings and query strings."""

import bisect
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
    r"(?:secret(?!ar|ion)|passw(?:or)?d(?!less)|pass(?:phrase|code)|\bpass\.(?:word|wd|phrase|code)|pwd|credential|\bjaas\b|\bsas\.token"
    r"|(?:access|account|aes|api|auth|consumer|(?:de|en)cryption|hmac|keystore|master|private|provided|provider\.client|pvt|secret"
    r"|session|shared|signing|ssh|storage|subscription)\.?key(?!board|word|space))"
    # These words tell of a fact about a secret; all but one only at the end, since an account may have any name.
    r"(?!s?\.?(?:provider\b|(?:age|attempts|callback|change[ds]?|count|length|level|policy|resets?|strength|types?)$))"
    r"|\bauth\.user\.info\b|\bkerberos\.ticket\b|(?:token|\bsas)\..{0,80}\.(?:blob|dfs)\."
    # These words count only at the end of a name: passRate, tokenLength and authType are not secret.
    r"|(?:token|signature|cookie|\bssl\.?key|\bauth\.header|\b(?:auth|authorization|bearer|jwt|sas|sig)|(?:^|\b(?!(?:all|band|boarding"
    r"|bus|by|com|day|did|encom|first|has|high|is|last|low|month|multi|n|num|one|over|rail|season|single|ski|sur|tres|two|under)"
    r"\.?pass)\w+\.?)pass)\d*(?:\.(?:value|string|code|\d+))?$"
)
"""Pattern that occurs in the names of settings that hold a secret; names are lower-case words with dots between them.
"""
_SETTING = re.compile(
    r"""[(\[]\s*\\?["']\s*([\w.-]+)\s*\\?["']\s*,\s*(?=[^\s)\]])"""
    r"""|(?<![\w.-])([\w.-]+)\s*(?:\\?["']\s*)?(?:(=)\s*(?=[^\s&;])|(:)\s*(?=[^\s&;,)\]}]|[,)\]}]\w))"""
)
"""Pattern of a name and of the text between the name and its value, in a pair, or in a setting, a URL or a mapping."""
_TOKEN = re.compile(
    # A doubled quote is part of a quoted text; so is what follows it without a space.
    r"""\\(["']).*?(?:(?<!\\)\\\1|\Z)|[bru]?"(?:[^"\\]|\\.|"")*(?:"(?:\w[^\s&;,"'()\[\]{}]*)?|\\?\Z)"""
    r"""|[bru]?'(?:[^'\\]|\\.|\'\')*(?:'(?:\w[^\s&;,"'()\[\]{}]*)?|\\?\Z)"""
    # In SQL Server's braces, a doubled brace is part of the text.
    r"""|\{(?:[^{}"':]|\}\})*\}(?:\w[^\s&;,"'{}]*\})?|datetime\.\w+\([^)]*\)|[(\[{]|[)\]}](?!\w)|(?:[\s&;]|,(?!\w))+"""
    # Other text ends at a punctuation mark, unless more of a word follows; it includes a space if a semicolon ends the
    # value.
    r"""|(?:(?:bearer|basic|digest|negotiate|token|apikey)\s+)?"""
    r"""[^\s&;"'(\[{](?:[^\s&;,"'()\[\]{}\\]|["'()\[\]{}\\,](?=\w)|[ ](?=[^;&"'=]{0,80};))*""",
    re.IGNORECASE | re.DOTALL,
)
"""Pattern of a piece of a value: a quoted text, a bracket, a separator, or other text, perhaps after the name of an
HTTP authentication scheme.
"""
_QUOTED = re.compile(r"""(?<!\w)(["'])((?:(?!\1)[^\\]|\\.|\\\Z)*)(?:\1|\Z)""", re.DOTALL)
"""Pattern of a quoted text; an apostrophe within a word begins none."""
_REST = {"=": re.compile(r"[^&;]*"), ":": re.compile(r"[^&;,)\]}\n]*")}
"""Patterns of what else of a value in a quoted text is hidden, by the character between name and value."""
_BEARER = re.compile(r"(\bbearer\s+)[\w.~+/=-]+", re.IGNORECASE)
_BEFORE_AT = re.compile(r"""(?:(?<!\S)|(?<=["'](?!\w)))(?:[^\s"']|["'](?=\w))*@""")
"""Pattern of a text without spaces, up to its last @, in which a quote may only stand before a word. Logins are looked for in
such texts alone, so that the search takes no more than linear time.
"""
_LOGIN = re.compile(
    # user:secret@host. A secret may contain a slash or an @, so text with a colon ends at the last @. In URLs of Hadoop's file
    # systems, digits before a slash are a port; in others, digits before a query.
    r"(\bs3[an]?:/{2}|\w:/{2}(?!(?<=fs:/{2})[^/@:]*:\d+[/?#]|[^/@:]*:\d+(?:/[\w$.-]*)?\?\w+=))[^/@:]*:.*@"
    # Text without a colon ends at the first slash; in Azure's URLs it is the name of a container.
    r"|(?<![\w+.-])((?!abfss?:|wasbs?:)[\w+.-]+:/{2})[^/?#@:]+@"
    r"|(jdbc:oracle:\w+:)[^@].*@",
    re.IGNORECASE,
)
"""Pattern of the login in a URL, up to the @; what stays is one of its groups."""
_QUOTED_LOGIN = re.compile(r"""(jdbc:oracle:\w+:)(?:\\?"[^"]*"|[^\s"'@/:]*)/\\?"[^"]*"@""", re.IGNORECASE)
"""Pattern of a login with a quoted password, as Oracle has it."""


def redacted(text: str, *, whole: bool = False) -> str:
    """The text without secrets: `s3a://...@bucket/rows` for `s3a://user:secret@bucket/rows`, and `password=...`
    whatever the password is.

    More than secrets may be hidden, such as a folder whose name looks like a login. A secret that is recognised is
    hidden completely, never in part; outside quotes it ends at a space, unless a semicolon follows.

    Args:
        whole: the text is a single value, and secrets in it may contain spaces, as in a quoted text.
    """
    spans = [
        *((login.end(1), login.end() - 1) for login in _QUOTED_LOGIN.finditer(text)),
        *(
            (login.end(login.lastindex or 0), login.end() - 1)
            for piece in _BEFORE_AT.finditer(text)
            for login in _LOGIN.finditer(text, *piece.span())
        ),
        *((bearer.end(1), bearer.end()) for bearer in _BEARER.finditer(text)),
    ]
    quoted, end = [found.span(2) for found in _QUOTED.finditer(text)], 0
    for found in _SETTING.finditer(text):
        if found.start() >= end and is_secret(found[1] or found[2]):
            begin, stop = quoted[bisect.bisect(quoted, (found.end(),)) - 1] if quoted else (0, 0)
            if not begin <= found.end() <= stop:
                stop = len(text) if whole else 0
            end = _end(text, found, stop)
            spans.append((found.end(), end))
    out, end = "", 0
    for start, stop in sorted(spans):
        if start >= end:
            out += text[end:start] + HIDDEN
        end = max(end, stop)
    return out + text[end:]


def is_secret(name: str) -> bool:
    """True if a setting of this name holds a secret: `fs.s3a.access.key` and `dbPass`, but not `primaryKey` and `passRate`."""
    return _SECRET.search(_WORDS.sub(".", name).strip(".").lower()) is not None


def _end(text: str, setting: re.Match[str], stop: int) -> int:
    """End position of the value of a setting: a text, or a bracket with everything up to its closing bracket; in a quoted text
    that ends at `stop`, with all that follows in it; in a pair, everything up to the pair's closing bracket.
    """
    depth = 0 if setting[1] is None else 1
    for token in _TOKEN.finditer(text, setting.end()):
        depth += (token[0] in ("(", "[", "{")) - (token[0] in (")", "]", "}"))
        if depth <= 0:
            if setting[1] is not None:
                return token.start()
            rest = _REST[setting[3] or setting[4]].match(text, token.end(), max(stop, token.end()))
            return token.end() if rest is None else rest.end()
    return len(text)


def without_secret(word: str) -> str:
    """The argument `name=value` of a command line, with a secret in its value replaced by `...`."""
    name, equals, _ = word.partition("=")
    return f"{name}={HIDDEN}" if equals and is_secret(name) else redacted(word, whole=True)


def without_value(name: str) -> str:
    """The name of a setting; if it says that it holds a secret, without what stands behind the name by mistake."""
    return re.sub(r"[^\w.-].*", f" {HIDDEN}", name.strip(), flags=re.DOTALL) if is_secret(name) else name


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
    return redacted(value, whole=True) if isinstance(value, str) else value
