"""Explanation for the summary: a paragraph, made from the figures of the run, about what held the pipeline back (its weights, its
settings or its form, that is its stages), and about what would help next."""

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

from sparkdiff.improvement.improvement_options import CHANGES_FORM
from sparkdiff.proof.decision import FINALISTS
from sparkdiff.report import enumeration, share_of, signed

NOTHING = 0.005
"""Gain, as a share of the metric, below which the explanation treats a gain as none."""
ALIKE = 0.9
"""Two gains count as about equal if the smaller one is at least this share of the larger."""
SETTINGS = ("refit", "search")
HELD_BACK_BY = {"weights": ("finetune",), "settings": SETTINGS, "form": ("import", "grow")}
"""Possible cause of a loss -> the arms whose gains reveal this cause. For a metric of decisions, the threshold is another."""


def explanation(
    table: Sequence[Mapping[str, Any]],
    arms: Sequence[Mapping[str, Any]],
    *,
    metric: str,
    level: float,
    rows: int,
    z: float,
    timed: bool,
    proven: str,
) -> str:
    """A paragraph that explains what holds the original back, or why no gain was found.

    Args:
        table: entries as in `ImprovementSummary.race`.
        arms: entries as in `ImprovementSummary.arms`.
        metric: name of the metric.
        level: the level of the test; a gain counts if its p-value is lower.
        rows: number of proving rows.
        z: z-score of the best candidate's gain on the proving rows; 0 if it was not tested.
        timed: True if the rows have a timeCol.
        proven: name of the candidate whose gain is proven; empty if there is none.
    """
    gains: dict[str, float] = {}
    for row in table:
        if row["arm"] is not None:
            gains[row["arm"]] = max(gains.get(row["arm"], 0.0), row["gain"])
    best = max(gains, key=lambda a: gains[a], default=None)
    if best is None or gains[best] < NOTHING:
        return _nothing(arms, proven)
    parts = [_where(gains, best, metric, timed, explored_causes(arms))]
    if not any(row["accepted"] for row in table):
        parts.append(_rows_needed(rows, z, level))
    parts.append(_cut_arms_sentence(arms))
    return " ".join(filter(None, parts))


def explored_causes(arms: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names among weights, settings and form for which at least one arm has ended without being cut by the budget."""
    had = {a["arm"] for a in arms if a["state"] in ("done", "stopped") and not a["cut"]}
    return [name for name, each in HELD_BACK_BY.items() if had & set(each)]


def _nothing(arms: Sequence[Mapping[str, Any]], proven: str) -> str:
    ran = [a["arm"] for a in arms if a["state"] in ("done", "stopped")]
    if not ran:
        return "No arm could be tried."
    known = explored_causes(arms)
    parts = [
        f"Nothing that was tried ({', '.join(ran)}) lowers the loss by more than {NOTHING:.1%} on the rows that explore."
    ]
    if proven:
        parts.append(f"The gain of {proven!r} shows on the rows that prove.")
    elif known:
        parts.append(
            f"As far as this shows, {enumeration(known)} {'is' if known == ['form'] else 'are'} as good as these columns allow."
        )
    if cut := _cut_arms_sentence(arms):
        parts.append(cut)
    elif len(known) == len(HELD_BACK_BY) and not proven:
        parts.append("Other columns would help next, not more compute.")
    return " ".join(parts)


def _cut_arms_sentence(arms: Sequence[Mapping[str, Any]]) -> str:
    """A sentence about the arms that the budget cut short; empty if there are none."""
    cut = [a["arm"] for a in arms if a["cut"]]
    if not cut:
        return ""
    verb = "was" if len(cut) == 1 else "were"
    return f"The budget was over before {enumeration(cut)} {verb} done: a larger one may show more."


def _where(gains: Mapping[str, float], best: str, metric: str, timed: bool, known: Sequence[str]) -> str:
    """A sentence that says whether the threshold, the weights, the settings or the form (the stages) held the pipeline back."""
    top = gains[best]
    weights = gains.get("finetune", 0.0)
    settings = max((gains[a] for a in SETTINGS if a in gains), default=0.0)
    form = max((gains[a] for a in CHANGES_FORM if a in gains), default=0.0)
    threshold = gains.get("threshold", 0.0)
    found = {"weights": weights, "settings": settings, "form": form, "threshold": threshold}
    figures = ", ".join(f"{name} {signed(gain)}" for name, gain in found.items() if gain > 0)
    if threshold >= ALIKE * top:
        return (
            "The loss was in the decisions: another threshold gains about all that was found, with all probabilities as they "
            f"are ({figures} of {metric})."
        )
    if weights >= ALIKE * top:
        return f"The loss was in the weights: training them together gains about all that was found ({figures} of {metric})."
    if gains.get("refit", 0.0) >= ALIKE * top:
        old = ", as under drift" if timed else ""
        return (
            f"The loss was in old weights: a plain refit on these training rows gains about all that was found ({figures} of "
            f"{metric}){old}. Fit this pipeline more often."
        )
    if settings >= ALIKE * top:
        return f"The loss was in the settings: other ones, fitted anew, gain about all that was found ({figures} of {metric})."
    both = max(weights, settings) < NOTHING and {"weights", "settings"} <= set(known)
    more = "; its weights and settings have little left" if both else ""
    return f"The loss was in the form: stages that it lacks, or that stand in its way, gain most ({figures} of {metric}){more}."


def _rows_needed(rows: int, z: float, level: float) -> str:
    """A sentence with the number of rows that would show this gain; empty if the rows suffice, or if the gain is not positive.

    It assumes that z-scores grow with the square root of the number of rows.
    """
    needed = 1.0 - NormalDist().inv_cdf(min(level, 0.5) / FINALISTS)
    if not z > 0 or z >= needed:
        return ""
    return (
        f"The {rows:,} rows that prove are too few to tell it from chance; if the gain is true, about "
        f"{round(rows * (needed / z) ** 2, -2):,.0f} would show it."
    )


def beside(name: str, value: float | None, returned: float, sign: float) -> str:
    """A sentence if the baseline is better than the best pipeline of the race by at least `NOTHING`; else empty.

    Args:
        name: name of the baseline.
        value, returned: the metric of the baseline and of the best pipeline, on validation rows.
        sign: 1.0 if a smaller metric is better, -1.0 if a larger one is.
    """
    better = 0.0 if value is None else share_of(sign * (returned - value), returned)
    if better < NOTHING:
        return ""
    return (
        f"{name}, on the same features and for comparison only, reach {value:.5g}, {better:.1%} better than the best that was "
        "tried: these features hold more than was found."
    )
