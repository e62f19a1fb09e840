"""Summary of labelling functions after a fit, and reasons to doubt the fit."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from sparkdiff.labeling.estimates import (
    ABSTAINS,
    Estimate,
    Floats,
    majority,
    vote_counts,
)
from sparkdiff.labeling.votes import Votes
from sparkdiff.report import Displayable, Section, SectionTable

FEW = 50
"""Smallest number of rows on which two functions both vote (or would both vote by chance) for a warning that they
always agree, never agree, or never vote on the same row."""
ERRORS, LABELS = 3.0, 10
"""A warning requires more than ERRORS standard errors between the estimated accuracy of a function and its accuracy on
labelled rows, and votes of it on at least LABELS labelled rows."""


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class LabelSummary(Displayable):
    """Estimates for the labelling functions. `print` shows them as a table.

    Attributes:
        functions: an entry for each function: {"name", "classes" (the classes for which it votes), "coverage" (share of
            rows on which it votes), "overlaps" (share of rows on which it and another function vote), "conflicts" (share of
            rows on which it and another function vote for different classes), "accuracy" (estimated share of its votes
            that are right; None without votes), "labelled" (share of its votes on labelled rows that are right; None
            without such votes), "labelledRows" (number of labelled rows on which it votes)}.
        balance: estimated share of each class.
        rows: number of rows with weight above 0 that were counted.
        unlabelled: share of rows on which no function votes.
        agreement: {"rows", "labelModel", "majority"}: number of labelled rows with votes, and the shares of them on which
            the label model and the majority vote are right; None without such rows.
        method: the method that was used.
        warnings: reasons to doubt the figures.
    """

    __module__ = "sparkdiff"

    functions: list[dict[str, Any]]
    balance: list[float]
    rows: float
    unlabelled: float
    agreement: dict[str, float] | None
    method: str
    warnings: list[str]

    def asdict(self) -> dict[str, Any]:
        """The summary as JSON-ready values."""
        return dataclasses.asdict(self)

    def _headline(self) -> str:
        return (
            f"{len(self.functions)} functions on {self.rows:,.0f} rows, {1 - self.unlabelled:.1%} of which have votes"
        )

    def _sections(self) -> Any:
        yield self._headline()
        rows = [("function", "classes", "coverage", "overlaps", "conflicts", "accuracy", "on labels")]
        for f in self.functions:
            known = "" if f["labelled"] is None else f"{f['labelled']:.1%} of {f['labelledRows']:,.0f}"
            accuracy = "" if f["accuracy"] is None else f"{f['accuracy']:.1%}"
            shares = (f"{f[name]:.1%}" for name in ("coverage", "overlaps", "conflicts"))
            rows.append((f["name"], ", ".join(map(str, f["classes"])), *shares, accuracy, known))
        found: list[Section] = [SectionTable(rows, left=(0,))]
        found.append("estimated classes: " + ", ".join(f"{y}: {q:.1%}" for y, q in enumerate(self.balance)))
        if self.agreement:
            a = self.agreement
            found.append(
                f"right on {a['rows']:,.0f} labelled rows: label model {a['labelModel']:.1%}, majority vote {a['majority']:.1%}"
            )
        yield from (*found, *(f"warning: {w}" for w in self.warnings))


def summary_fields(names: Sequence[str], votes: Votes, estimate: Estimate) -> dict[str, Any]:
    """The fields of a LabelSummary, except its method."""
    v, w = votes.patterns, votes.weights / votes.weights.sum()
    k, on, labelled = len(estimate.balance), v != ABSTAINS, votes.known >= 0
    counts, number = vote_counts(v, k), on.sum(1)
    functions = []
    for j, name in enumerate(names):
        mine, own = on[:, j], counts[np.arange(len(v)), np.maximum(v[:, j], 0)]
        known = mine & labelled
        functions.append(
            {
                "name": name,
                "classes": np.unique(v[mine, j]).tolist(),
                "coverage": float(w[mine].sum()),
                "overlaps": float(w[mine & (number > 1)].sum()),
                "conflicts": float(w[mine & (number > own)].sum()),
                "accuracy": float(estimate.accuracies[j]) if mine.any() else None,
                "labelled": float(w[known & (v[:, j] == votes.known)].sum() / w[known].sum()) if known.any() else None,
                "labelledRows": float(votes.rows[known].sum()),
            }
        )
    agreement = _agreement(votes, estimate)
    return {
        "functions": functions,
        "balance": estimate.balance.tolist(),
        "rows": float(votes.rows.sum()),
        "unlabelled": float(w[~on.any(1)].sum()),
        "agreement": agreement,
        "warnings": [
            *_accuracy_warnings(functions),
            *_less_right(agreement, k),
            *_missing_class_warnings(votes, k),
            *_warnings(names, votes),
        ],
    }


def _agreement(votes: Votes, estimate: Estimate) -> dict[str, float] | None:
    """Shares of labelled rows with votes on which the label model and the majority vote are right; None without such rows.

    If c classes are tied and the label is among them, the row counts as 1 / c right.
    """
    some = (votes.known >= 0) & (votes.patterns != ABSTAINS).any(1)
    if not some.any():
        return None
    v, y, w = votes.patterns[some], votes.known[some], votes.weights[some]
    at, posterior = np.arange(len(v)), estimate.posterior(v)
    best = (posterior >= posterior.max(1, keepdims=True) - 1e-9).astype(np.float64)
    model = (best / best.sum(1, keepdims=True))[at, y] @ w / w.sum()
    most = majority(v, len(estimate.balance))[at, y] @ w / w.sum()
    return {"rows": float(votes.rows[some].sum()), "labelModel": float(model), "majority": float(most)}


def _accuracy_warnings(functions: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A warning about functions whose accuracy on labelled rows differs from the estimate by over `ERRORS` standard errors."""
    wrong = []
    for f in functions:
        if f["labelled"] is None or f["accuracy"] is None or f["labelledRows"] < LABELS:
            continue
        n, estimated, seen = f["labelledRows"], f["accuracy"], f["labelled"]
        variance = max(estimated * (1 - estimated), seen * (1 - seen), 1 / n)
        if abs(estimated - seen) > ERRORS * (variance / n) ** 0.5:
            wrong.append(f"{f['name']!r} {estimated:.0%}, on labels {seen:.0%} of {n:,.0f} rows")
    if wrong:
        yield (
            f"labels refute the estimated accuracy of {'; '.join(wrong)}: what the model assumes does not hold. Correct or drop "
            "the functions that are often wrong, or train on the labels alone"
        )


def _less_right(agreement: Mapping[str, float] | None, k: int) -> Iterator[str]:
    """Warnings if the label model is right on clearly fewer labelled rows than the majority vote, or than chance would
    be: by more than two standard errors.
    """
    if agreement is None:
        return
    n, model = agreement["rows"], agreement["labelModel"]
    less = agreement["majority"] - model
    if less > 0 and less > 2 * (less / n) ** 0.5:
        yield (
            f"on {n:,.0f} labelled rows the majority vote is right more often ({agreement['majority']:.1%}) than this model "
            f"({model:.1%}): what it assumes does not hold for these functions"
        )
    if 1 / k - model > 2 * ((1 - 1 / k) / k / n) ** 0.5:
        yield (
            f"on {n:,.0f} labelled rows with votes this model is right on {model:.1%}, less than chance ({1 / k:.1%}): correct "
            "the functions that are often wrong, or train on the labels alone"
        )


def _missing_class_warnings(votes: Votes, k: int) -> Iterator[str]:
    """Warnings about classes for which no function votes; none for two classes, where abstaining may imply the other class."""
    for y in sorted(set(range(k)) - set(votes.patterns.ravel().tolist())) if k > 2 else ():
        rows = votes.rows[votes.known == y].sum()
        labels = f", the label of {rows:,.0f} rows" if rows else ""
        yield (
            f"no function votes for class {y}{labels}: hardly any row will be given to it. Add a function, or leave the "
            "class out"
        )


def _warnings(names: Sequence[str], votes: Votes) -> list[str]:
    v, out = votes.patterns, list[str]()
    out += [f"{name!r} abstains on all rows" for name, mine in zip(names, v.T, strict=True) if (mine == ABSTAINS).all()]
    for i, j in combinations(range(len(names)), 2):
        if found := _pair(v[:, i], v[:, j], votes.rows):
            out.append(f"{names[i]!r} and {names[j]!r} {found}")
    if votes.sampled:
        out.append(
            f"the votes of a sample of {votes.rows.sum():,.0f} rows were counted: there are very many patterns of votes"
        )
    return out


def _pair(first: Any, second: Any, rows: Floats) -> str | None:
    """Text about an anomaly in the votes of two functions, such as votes that always agree; None if there is no anomaly.

    Args:
        first: (P,) votes of one function in each pattern.
        second: (P,) votes of the other function.
        rows: (P,) number of rows with each pattern.
    """
    on, there = first != ABSTAINS, second != ABSTAINS
    both = on & there
    n, expected = rows[both].sum(), rows[on].sum() * rows[there].sum() / rows.sum()
    alike = rows[both & (first == second)].sum()
    same, within = (on == there).all(), (both == on).all() or (both == there).all()
    several = any(len(np.unique(votes[both])) > 1 for votes in (first, second))
    if n >= FEW and alike == n and (same or (several and within)):
        return f"agree on all {n:,.0f} rows of both: if one is a copy, it counts twice"
    if n >= FEW and alike == 0 and (several or same):
        return f"contradict each other on all {n:,.0f} rows on which both vote"
    if n == 0 and expected >= FEW:
        return (
            f"never vote on the same row, where {expected:,.0f} rows are expected by chance: they are not independent, and their "
            "accuracies may be wrong"
        )
    return None
