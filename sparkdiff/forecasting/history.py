"""What a store of runs knows of a model: whether it was tuned before, what that gained, and how the rows have drifted since."""

from collections.abc import Mapping, Sequence
from typing import Any

from sparkdiff.forecasting.facts import Facts
from sparkdiff.history.store import parsed

COLUMNS = (
    "verb", "model", "parent", "kept", "gain", "metric", "metricDirection", "after", "coreSeconds", "tags", "finished",
    "options",
)  # fmt: skip
"""Of a store, what triage reads."""


def history(
    runs: Sequence[Mapping[str, Any]], content: str | None, metric: float, name: str, options: Mapping[str, Any]
) -> Facts:
    """Facts about the last run that returned a model with this content: that it is `known`, whether that run had tuned it and
    what this gained, and the `drift`: how much worse the model is now than it was at the end of that run, as a share. A search
    is no such run; and there is no drift where that run measured another metric, or this one with other parameters.

    Args:
        runs: of the store, the oldest first.
        metric, name: of the model on new rows, its value and its name.
        options: with which it was measured.
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
    """Parameters that the metric may take."""
    given = [options.get(name) for name in ("lossParams", "metricParams")]
    return {k: v for params in given if isinstance(params, Mapping) for k, v in params.items()}
