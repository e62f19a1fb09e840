"""The values of a run for trackers: parameters, metrics and points of curves, in plain values without secrets."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from sparkdiff.growth.growth_options import GrowthSettings
from sparkdiff.improvement.improvement_options import ImprovementSettings
from sparkdiff.machine import secrets
from sparkdiff.options import Options, is_finite

WHOSE = ("epoch", "candidate", "fold", "arm", "round", "trial", "learningRate", "regAnchor")
"""Keys of a row of a history that identify its curve or its step in the curve, or are constant along the curve."""
UNNAMED = re.compile(r"[^\w./: -]", re.ASCII)
"""Pattern of the characters that names of params and metrics cannot have in MLflow."""
LONGEST_NAME = 240
"""Largest length of a name: MLflow takes 250 characters, and the prefix `sparkdiff.` may be added."""
LONGEST = 500
"""Largest length of a parameter or a tag that every version of MLflow's server takes."""


class CurvePoint(NamedTuple):
    """A point of a curve."""

    name: str
    value: float
    step: int


def plain(summary: Any) -> dict[str, Any]:
    """A summary as JSON-ready values without secrets."""
    found: dict[str, Any] = secrets.hidden(summary.asdict() if hasattr(summary, "asdict") else summary.toDict())
    return found


def params(summary: Any) -> dict[str, str]:
    """The settings of a run that differ from the defaults, as text by name; for a search, its main settings and the
    winner's.
    """
    if hasattr(summary, "options"):
        given, known = summary.options, _defaults()
        asked = {k: v for k, v in given.items() if k not in known or v != known[k]}
    else:
        own = {name: getattr(summary, name) for name in ("sampler", "pruner", "folds", "trials")}
        asked = own | {f"winner.{name}": value for name, value in summary.settings.items()}
    return {safe_name(name): text(value) for name, value in secrets.hidden(asked).items() if value is not None}


def safe_name(name: str) -> str:
    """A name converted to a form that every tracker accepts: names of columns may have any characters, and MLflow
    treats names as paths.
    """
    parts = [part for part in UNNAMED.sub("_", name).split("/") if part]
    found = "/".join(part if part.strip(".") else "_" * len(part) for part in parts) or "_"
    found = f"_{found}" if found.startswith("..") else found
    if len(found) <= LONGEST_NAME:
        return found
    return f"{found[: LONGEST_NAME - 9]}.{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def text(value: Any) -> str:
    """A value as text of bounded length."""
    found = value if isinstance(value, str) else json.dumps(value, default=str)
    return found if len(found) <= LONGEST else found[: LONGEST - 3] + "..."


def _defaults() -> dict[str, Any]:
    return GrowthSettings().asdict() | ImprovementSettings().asdict() | Options().asdict()


def metrics(summary: Any) -> dict[str, float]:
    """The figures of a decision by name; unknown and non-finite figures are left out."""
    name, found = summary.metric, dict[str, Any]()
    if hasattr(summary, "fresh"):
        found = {f"fresh.{name}.{who}": value for who, value in summary.fresh.items()}
        found |= {f"validation.{name}": summary.validation, "optimism": summary.optimism}
    else:
        for split, sides in summary.metrics.items():
            found |= {f"{split}.{name}.{side}": value for side, value in (sides or {}).items()}
        found |= {f"seconds.{phase}": value for phase, value in summary.timings.items()}
        found["z"] = summary.z
    low, high = summary.gainInterval or (None, None)
    found |= {"gain": summary.gain, "p": summary.p, "gainInterval.low": low, "gainInterval.high": high}
    found["warnings"] = len(summary.warnings)
    return {safe_name(key): float(value) for key, value in found.items() if is_finite(value)}


def points(row: Mapping[str, Any]) -> Iterator[CurvePoint]:
    """The points that a row of a history adds to curves, such as `fold1/candidate0/validationMetric` at the step of its
    epoch.
    """
    trial = "trial" in row
    parts = [f"{row['arm']}{row['round']}"] if "arm" in row else []
    parts += [f"fold{row['fold']}"] if row.get("fold") is not None else []
    parts += ["trials"] if trial else [f"candidate{row.get('candidate', 0)}"]
    for name, value in row.items():
        if name not in WHOSE and is_finite(value):
            yield CurvePoint(safe_name("/".join([*parts, name])), float(value), int(row["trial" if trial else "epoch"]))
