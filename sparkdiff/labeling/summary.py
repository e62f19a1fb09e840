"""Summary of labelling functions after a fit, and reasons to doubt it."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from sparkdiff.labeling.estimates import (
    ABSTAINS,
    Estimate,
    Floats,
    counted as counted_votes,
    majority,
)  # fmt: skip
from sparkdiff.labeling.votes import Votes
from sparkdiff.report import Section, SectionTable, Shown

FEW = 50
"""Smallest number of rows that two functions share, or would by chance, for a warning that they always or never agree.
"""
ERRORS, LABELS = 3.0, 10
"""Standard errors between an estimated accuracy and that on labels for a warning, and the smallest number of labels for it."""


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class LabelSummary(Shown):
    """Estimates for the labelling functions. `print` shows them as a table.

    Attributes:
        functions: for each function {"name", "classes" (those it votes for), "coverage" (share of rows on which it
            votes), "overlaps" (share on which another one votes, too), "conflicts" (share on which another one votes
            for another class), "accuracy" (estimated share of its votes that are right), "labelled" (the same on rows
            with a label; None without such votes), "labelledRows"}.
        balance: estimated share of each class.
        rows: number of rows that were counted, with weight above 0.
        unlabelled: share of rows on which no function votes.
        agreement: on labelled rows with votes {"rows", "labelModel", "majority"}: shares that are right; None without
            labels.
        method: the method used.
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


def told(names: Sequence[str], votes: Votes, estimate: Estimate) -> dict[str, Any]:
    """The fields of a LabelSummary, except its method."""
    v, w = votes.patterns, votes.weights / votes.weights.sum()
    k, on, labelled = len(estimate.balance), v != ABSTAINS, votes.known >= 0
    counts, number = counted_votes(v, k), on.sum(1)
    functions = []
    for j, name in enumerate(names):
        mine, own = on[:, j], counts[np.arange(len(v)), np.maximum(v[:, j], 0)]
        known = mine & labelled
        functions.append({
            "name": name, "classes": np.unique(v[mine, j]).tolist(), "coverage": float(w[mine].sum()),
            "overlaps": float(w[mine & (number > 1)].sum()), "conflicts": float(w[mine & (number > own)].sum()),
            "accuracy": float(estimate.accuracies[j]) if mine.any() else None,
            "labelled": float(w[known & (v[:, j] == votes.known)].sum() / w[known].sum()) if known.any() else None,
            "labelledRows": float(votes.rows[known].sum()),
        })  # fmt: skip
    agreement = _agreement(votes, estimate)
    return {
        "functions": functions, "balance": estimate.balance.tolist(), "rows": float(votes.rows.sum()),
        "unlabelled": float(w[~on.any(1)].sum()), "agreement": agreement,
        "warnings": [*_refuted(functions), *_less_right(agreement, k), *_unvoted(votes, k), *_warnings(names, votes)],
    }  # fmt: skip


def _agreement(votes: Votes, estimate: Estimate) -> dict[str, float] | None:
    """Shares of labelled rows with votes that are right; classes tied in probability, or in votes, share a row."""
    some = (votes.known >= 0) & (votes.patterns != ABSTAINS).any(1)
    if not some.any():
        return None
    v, y, w = votes.patterns[some], votes.known[some], votes.weights[some]
    at, posterior = np.arange(len(v)), estimate.posterior(v)
    best = (posterior >= posterior.max(1, keepdims=True) - 1e-9).astype(np.float64)
    model = (best / best.sum(1, keepdims=True))[at, y] @ w / w.sum()
    most = majority(v, len(estimate.balance))[at, y] @ w / w.sum()
    return {"rows": float(votes.rows[some].sum()), "labelModel": float(model), "majority": float(most)}


def _refuted(functions: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A warning about functions whose accuracy on labels differs from the estimate by more than three standard errors."""
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
    """Warnings if the majority vote, or chance, is right on clearly more labelled rows, by two standard errors."""
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


def _unvoted(votes: Votes, k: int) -> Iterator[str]:
    """Warnings about classes that no function votes for; none for two classes, where abstaining may imply the other."""
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
    """The anomaly in the votes (P,) of two functions, in words; None if there is none."""
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
