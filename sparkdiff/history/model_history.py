"""Facts about a model from a store of runs: whether it was tuned before, the gain of that run, and the drift since then."""

from collections.abc import Mapping, Sequence
from typing import Any

from sparkdiff.history.pipeline_facts import Facts
from sparkdiff.history.run_table import json_object

COLUMNS = (
    "verb",
    "model",
    "parent",
    "kept",
    "gain",
    "metric",
    "metricDirection",
    "after",
    "coreSeconds",
    "tags",
    "finished",
    "options",
)
"""Columns of a store of runs that triage reads."""


def history(
    runs: Sequence[Mapping[str, Any]], content: str | None, metric: float, name: str, options: Mapping[str, Any]
) -> Facts:
    """Facts about the last run that returned a model with this content; empty if there is no such run. Searches don't count.

    The facts are `known` (1), `lastTuned` (1 if the last run tuned the model, 0 if it kept its original), `lastGain` (the
    gain of the last run) and `drift` (the difference between the metric now and at the end of the last run, as a share of
    the latter; positive if the metric is worse now). `drift` is left out if the last run measured another metric, or the
    same metric with other parameters.

    Args:
        runs: runs of the store, the oldest first.
        content: hash of the content of the model; None if unknown.
        metric, name: value and name of the metric of the model on new rows.
        options: the options with which the metric was measured.
    """
    made = [run for run in runs if content is not None and run["model"] == content and run["verb"] != "search"]
    if not made:
        return {}
    last = made[-1]
    tuned = not last["kept"]
    out = {"known": 1.0, "lastTuned": float(tuned), "lastGain": float(last["gain"] or 0.0) if tuned else 0.0}
    same = last["metric"] == name and _params(json_object(last["options"])) == _params(options)
    if last["after"] and same:
        worse = (metric - last["after"]) / abs(last["after"])
        out["drift"] = worse if last["metricDirection"] == "smaller" else -worse
    return out


def _params(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those parameters in the options that may affect the metric."""
    given = [options.get(name) for name in ("lossParams", "metricParams")]
    return {k: v for params in given if isinstance(params, Mapping) for k, v in params.items()}
