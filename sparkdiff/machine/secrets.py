"""Secrets in texts that are shown or kept: left out wherever a URL, a setting or a query string holds one."""

import math
import numbers
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "..."
_NAME = r"[\w.-]*(?:secret|passw(?:or)?d|pwd|token|access[._-]?key|account[._-]?key|api[._-]?key|credential|signature)[\w.-]*|sig"
NAME = re.compile(_NAME, re.IGNORECASE)
"""Names of settings whose values are not told: those of Spark's `spark.redaction.regex`, of JDBC URLs, and of signed URLs."""
_TOKENIZER = re.compile(r"tokenizer|(?<=min)TokenLength", re.IGNORECASE)
"""Words that read like the name of a secret, and are of Spark's stages."""
_VALUE = r'"(?:[^"\\]|\\.)*"|\'[^\']*\'|\{[^}]*\}|[^\s&;,"\'{}]+'
_SETTING = re.compile(rf"(?<![\w.-])((?:{_NAME})[\"']?\s*[=:]\s*)(?:{_VALUE})", re.IGNORECASE)
# user:secret@host. A secret may itself hold a slash or an @, so what has a colon ends at the last @. Where URLs have ports,
# digits in front of a slash are one.
_LOGIN = re.compile(r"(\bs3[an]?:/{2}|\w:/{2}(?![^\s\"'/@:]*:\d+(?:[/?#]|$)))[^\s\"'/@:]*:[^\s\"']*@", re.IGNORECASE)
# Without a colon only up to the first slash; in Azure's URLs that is the name of a container.
_USER = re.compile(r"(?<![\w+.-])((?!abfss?:|wasbs?:)[\w+.-]+:/{2})[^\s\"'/?#@:]+@", re.IGNORECASE)
_ORACLE = re.compile(r"(jdbc:oracle:\w+:)[^\s\"'@]+@", re.IGNORECASE)


def redacted(text: str) -> str:
    """The text without secrets: `s3a://...@bucket/rows` for `s3a://user:secret@bucket/rows`, `password=...` for any value of it.

    It may hide more than a secret, such as a folder whose name reads like a login, never less of a value that it recognises.
    """
    for login in (_LOGIN, _USER, _ORACLE):
        text = login.sub(rf"\g<1>{HIDDEN}@", text)
    return _SETTING.sub(rf"\g<1>{HIDDEN}", text)


def hidden(value: Any, name: str = "") -> Any:
    """A copy of plain values as JSON has them, in which secrets are left out, by their names and by their form in text."""
    if isinstance(value, Mapping):
        return {str(key): hidden(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [hidden(inner, name) for inner in value]
    if type(value) not in (bool, int, float) and isinstance(value, numbers.Real):
        value = (
            int(value) if isinstance(value, numbers.Integral) else float(value)
        )  # of numpy, as an evaluator may return
    if value is None or isinstance(value, (bool, float)):
        return None if isinstance(value, float) and not math.isfinite(value) else value
    if NAME.fullmatch(_TOKENIZER.sub("", name)):
        return HIDDEN
    return redacted(value) if isinstance(value, str) else value
