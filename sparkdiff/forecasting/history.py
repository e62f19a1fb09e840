"""Facts from a store of runs about a model: whether it was tuned before, the gain, and the drift of the rows since."""

from collections.abc import Mapping, Sequence
from typing import Any

from sparkdiff.forecasting.facts import Facts
from sparkdiff.history.store import parsed

COLUMNS = (
    "verb", "model", "parent", "kept", "gain", "metric", "metricDirection", "after", "coreSeconds", "tags", "finished",
    "options",
)  # fmt: skip
"""Columns of a store that triage reads."""


def history(
    runs: Sequence[Mapping[str, Any]], content: str | None, metric: float, name: str, options: Mapping[str, Any]
) -> Facts:
    """Facts about the last run that returned a model with this content; empty if there is none. A search is no such
    run.

    The facts are `known`, `lastTuned` (whether that run tuned the model), `lastGain` (its gain) and `drift`: how much
    worse the metric is now than at the end of that run, as a share. `drift` is left out if that run measured another
    metric, or the same one with other parameters.

    Args:
        runs: runs of the store, the oldest first.
        metric, name: value and name of the metric of the model on new rows.
        options: the options that it was measured with.
    """
    made = [run for run in runs if content is not None and run["model"] == content and run["verb"] != "search"]
    if not made:
        return {}
    last = made[-1]
    tuned = not last["kept"]
    out = {"known": 1.0, "lastTuned": float(tuned), "lastGain": float(last["gain"] or 0.0) if tuned else 0.0}
    same = last["metric"] == name and _params(parsed(last["options"])) == _params(options)
    if last["after"] and same:
        worse = (metric - last["after"]) / abs(last["after"])
        out["drift"] = worse if last["metricDirection"] == "smaller" else -worse
    return out


def _params(options: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters from the options that the metric may use."""
    given = [options.get(name) for name in ("lossParams", "metricParams")]
    return {k: v for params in given if isinstance(params, Mapping) for k, v in params.items()}
