"""Warnings about the rows of a run, from one pass over the cache; each warning is one sentence with its evidence.

Warnings do not affect training or the decision: `check` runs before training, `too_few_rows` after the guard (the
statistical test on held-out rows) has decided.

To add a check:

1. Gather what it needs in `_RowStatistics.add`, batch by batch, with memory that does not grow with the rows, unless it is there
   already: the spread and the support of each column, sampled rows, and sparse indices.
2. Write a method of `_RowStatistics` that returns sentences: what was found, in which column, how often, and what to do.
3. Call it in `check`; a method that reads `spreads` is called before `spreads.clear()`.
4. Test it in `tests/api/evaluation/test_datachecks.py` on data with the fault and on clean data: `test_false_alarms_over_seeds`
   counts false alarms.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from sparkdiff.data.stream.manifest import Batch
from sparkdiff.evaluation.feature_names import FeatureNames, entering
from sparkdiff.evaluation.guard import Verdict, total_gain
from sparkdiff.evaluation.row_evidence import FARTHEST, RowHashes, Spread, drift, farness, leaks_class, leaks_number
from sparkdiff.evaluation.split_batches import Data, scalar
from sparkdiff.machine import resources
from sparkdiff.options import Options
from sparkdiff.pipeline.graph import Version
from sparkdiff.pipeline.network import Network
from sparkdiff.report.progress import share_of
from sparkdiff.stages.base import LabelStats
from sparkdiff.tensors.rows import Rows, SparseRows, below, matrix, rows_at

TRAIN, VALIDATION = "train", "validation"
SAMPLE_ROWS, SAMPLE_ENTRIES = (
    20_000,
    10_000_000,
)  # of each side, for leaks and drift: the first ones in the cache, which is ordered by hash
SPARSE_ROWS = 5_000  # of each side where a column is sparse
LEAK = 0.999
DRIFT, DRIFT_BY_TIME = 0.55, 0.75  # AUC
ERRORS = 4.0  # standard errors
HOPED = 0.05  # relative gain
RUINED = 10.0  # if the smallest visible gain is larger, the change has ruined the predictions
POWER = 0.8
SHOWN = 3  # findings of a kind that are named
NAMED = 0.05  # share of the drift from which a feature is named


def check(
    network: Network,
    data: Data,
    described: Mapping[Version, Mapping[str, Any]],
    options: Options,
    label: LabelStats,
    splits: Sequence[str],
    *,
    copies: bool = False,
) -> list[str]:
    """Warnings about the rows, which are read once. The network must be untrained; to be called in one process only.

    Args:
        described: for each cached version of a column, its entry in the cache's manifest.
        label: statistics of the labels of the training rows.
        splits: the splits that have rows.
        copies: True if labels are class probabilities, so that a training row may occur once per possible class. Then
            values that belong to one row only cannot be counted, the number of unseen values expected by chance is
            unknown, and unseen values are not reported.
    """
    seen = _RowStatistics(network, data, described, options, label, splits)
    for split in splits:
        for batch, y, weight, _ in data.batches(split):
            seen.add(split, batch, y, weight)
        resources.trim_memory()
    extremes, unseen = seen.extremes(), [] if copies else seen.unseen()
    seen.spreads.clear()  # frees five vectors of the columns' width per split
    resources.trim_memory()
    return [*extremes, *seen.leaks(), *seen.duplicates(), *seen.straddling(), *seen.drift(), *unseen]


class _RowStatistics:
    """Statistics that one pass over the rows collects, and the warnings that follow from them."""

    def __init__(
        self,
        network: Network,
        data: Data,
        described: Mapping[Version, Mapping[str, Any]],
        options: Options,
        label: LabelStats,
        splits: Sequence[str],
    ):
        self.network, self.data, self.options, self.splits = network, data, options, splits
        self.versions = entering(network)
        nothing: dict[Version, Rows] = data.values(data.stream.nothing())
        self._run(nothing)
        self.names = FeatureNames(network, described, nothing)
        self.spreads: dict[Version, dict[str, Spread]] = {v: {} for v in self.versions}
        self.usual: dict[Version, Tensor] = {}
        # Counts (levels + 1,) by column and split; the last entry counts values that are no level.
        self.indices: dict[Version, dict[str, Tensor]] = {}
        self.sample: dict[str, list[tuple[dict[Version, Rows], Tensor, Tensor]]] = {TRAIN: [], VALIDATION: []}
        self.sampled = dict.fromkeys(self.sample, 0)
        self.hashes = RowHashes(sum(data.stream.rows(s) for s in (TRAIN, VALIDATION)))
        self.groups: dict[str, list[Tensor]] = {s: [] for s in splits}
        self.rows = dict.fromkeys(splits, 0)
        whole = len(label.classes) == 2 and bool((label.classes > 0).all())
        self.classes = network.head.classes or (2 if whole else 0)

    def add(self, split: str, batch: Batch, y: Tensor, weight: Tensor) -> None:
        """Add a batch; rows of weight 0 are ignored."""
        values: dict[Version, Rows] = self.data.values(batch)
        counted = (weight > 0).nonzero()[:, 0]
        if len(counted) < len(weight):
            values, y, weight = {v: rows_at(x, counted) for v, x in values.items()}, y[counted], weight[counted]
        if not len(y):
            return
        block = scalar(batch, "block")[counted]
        cached = dict(values)
        self._run(values)
        if not self.usual:
            self._begin(values)
        self.rows[split] += len(y)
        for v in self.versions:
            if split not in self.spreads[v]:
                self.spreads[v][split] = Spread(self.usual[v])
            self.spreads[v][split].add(_vector(values[v]))
        for v, counts in self.indices.items():
            x, size = values[v], len(counts[split]) - 1
            assert isinstance(x, Tensor)
            counts[split] += torch.bincount(torch.where((x >= 0) & (x < size), x, size).long(), minlength=size + 1)
        if split in self.sample:
            self.hashes.add(split, [cached[v] for v in sorted(cached)], y)
            first = torch.arange(min(len(y), self.limit - self.sampled[split]))
            if len(first):
                self.sample[split].append(
                    ({v: rows_at(values[v], first) for v in self.versions}, y[first], block[first])
                )
                self.sampled[split] += len(first)
        if self.options.groupCol:
            self.groups[split].append(block.unique())

    @torch.no_grad()
    def _run(self, values: dict[Version, Rows]) -> None:
        """Compute the columns that enter stages with parameters, and add them to `values`."""
        self.network.run(values, [v for v in self.versions if v not in values])

    def _begin(self, values: dict[Version, Rows]) -> None:
        """Set the usual value of each slot (entry of a column) and the sample size from the first batch of training
        rows.
        """
        names = self.names
        self.sparse = {v: isinstance(values[v], SparseRows) for v in self.versions}
        for v in self.versions:
            x = _vector(values[v])
            if isinstance(x, SparseRows):
                self.usual[v] = torch.zeros((), dtype=torch.float64).expand(x.width)
            else:
                self.usual[v] = torch.where(names.binary(v), 0.0, x.nan_to_num().median(0).values)
        sizes = names.one_hot_sizes() | {v: len(levels) for v, levels in names.levels.items() if levels}
        for v, size in sizes.items():
            if not names.vectors.get(v, True):
                self.indices[v] = {s: torch.zeros(size + 1, dtype=torch.int64) for s in self.splits}
        wide = sum(names.widths[v] for v in self.versions if not self.sparse[v])
        self.limit = min(
            SPARSE_ROWS if any(self.sparse.values()) else SAMPLE_ROWS, max(1000, SAMPLE_ENTRIES // max(wide, 1))
        )

    def _sample_of(self, split: str) -> tuple[dict[Version, Rows], Tensor, Tensor]:
        """The sample of a split: (columns, label, block)."""
        parts = self.sample[split]
        columns = {v: below([p[0][v] for p in parts]) for v in self.versions}
        return columns, torch.cat([p[1] for p in parts]), torch.cat([p[2] for p in parts])

    # The findings ------------------------------------------------------------------------------------------------------

    def extremes(self) -> list[str]:
        """Warnings about values far from all others, such as a number that stands for a missing value."""
        found = []
        for v, spreads in self.spreads.items():
            for split, s in spreads.items():
                z = farness(split, spreads)
                if self.sparse[v] and not self.names.has_slot_names(v):
                    z = torch.where(z > FARTHEST, z, 0.0)  # counts of words are like that
                found += [(float(z[j]), v, j, split, s) for j in (z > 0).nonzero()[:, 0].tolist()]
        found.sort(key=lambda f: -f[0])
        out = [
            f"column {self.names.name(v, j)!r} holds {s.farthest(j):.7g} in {_rows(int(s.count[j]), split)}, "
            f"{z:,.0f} times as far from the usual {float(self.usual[v][j]):.4g} as other values: if it means "
            "a missing value, replace it by null and impute it; otherwise clip it"
            for z, v, j, split, s in found[:SHOWN]
        ]
        if len(found) > SHOWN:
            out[-1] += f" ({len(found) - SHOWN} more such columns or splits)"
        return out

    def leaks(self) -> list[str]:
        """Warnings about features that alone predict the label almost perfectly."""
        if not self.sampled[TRAIN] or not self.network.head.labelled:
            return []
        columns, y, _ = self._sample_of(TRAIN)
        found = []
        for v, x in columns.items():
            if self.classes:
                known = (y >= 0) & (y < self.classes) & (y == y.floor())
                rows = known.nonzero()[:, 0]
                for j, k, area in leaks_class(rows_at(x, rows), y[rows], self.classes, LEAK):
                    what = f"class {k} from the rest" if self.classes > 2 else "the two classes"
                    found.append((area, v, j, f"separates {what} with an AUC of {area:.4f}"))
            else:
                for j, name, r in leaks_number(x, y, LEAK):
                    found.append((abs(r), v, j, f"has a {name} correlation of {r:.5f} with the label"))
        best: dict[tuple[Version, int], tuple[float, str]] = {}
        for strength, v, j, text in found:
            if strength > best.get((v, j), (0.0, ""))[0]:
                best[v, j] = strength, text
        strongest = sorted(best.items(), key=lambda item: -item[1][0])[:SHOWN]
        return [
            f"column {self.names.name(v, j)!r} alone {text} on {len(y):,} training rows: if it becomes known only "
            "together with the label, predictions cannot use it; leave it out"
            for (v, j), (_, text) in strongest
        ]

    def duplicates(self) -> list[str]:
        """A warning if more validation rows occur in training than chance explains."""
        found = self.hashes.overlap()
        if found is None:
            return []
        return [
            f"{found.rows:,} validation rows ({found.share:.1%}) occur in train with the same inputs and label "
            f"({found.chance}), so the validation metrics are too good: drop duplicates before the split, or "
            "give the copies of a row one value of groupCol"
        ]

    def straddling(self) -> list[str]:
        """A warning if groups have rows in both training and validation."""
        if not self.options.groupCol or not self.groups[TRAIN] or not self.groups[VALIDATION]:
            return []
        train, held = (torch.cat(self.groups[s]).unique() for s in (TRAIN, VALIDATION))
        both = int(torch.isin(held, train).sum())
        if not both:
            return []
        return [
            f"{both:,} of the {len(held):,} groups of {self.options.groupCol!r} in validation also have "
            "training rows, so gains on validation rows say little about new groups: split by groupCol "
            "(without validationIndicatorCol and separate validation data), or move each group to one side"
        ]

    def drift(self) -> list[str]:
        """A warning if a classifier can separate validation rows from training rows."""
        if min(self.sampled.values()) < 2 * 30 or not self.versions:
            return []
        (train, _, early), (held, _, late) = self._sample_of(TRAIN), self._sample_of(VALIDATION)
        columns = [below([train[v], held[v]]) for v in self.versions]
        side = torch.arange(len(early) + len(late)) >= len(early)
        # By time all training rows are one block.
        cluster = torch.arange(len(side)) if self.options.timeCol else torch.cat([early, late])
        seen = drift(columns, side, cluster)
        least = DRIFT_BY_TIME if self.options.timeCol else DRIFT
        if not (seen.auc > least and seen.auc - 0.5 > ERRORS * seen.error):
            return []
        largest = [
            (float(share[j]), float(shift[j]), v, j)
            for v, share, shift in zip(self.versions, seen.shares, seen.shifts, strict=True)
            for j in share.topk(min(SHOWN, len(share))).indices.tolist()
        ]
        names = ", ".join(
            f"{self.names.name(v, j)!r} ({s:+.2f} standard deviations)"
            for share, s, v, j in sorted(largest, key=lambda t: -t[0])[:SHOWN]
            if share > NAMED
        )
        way = (
            "with timeCol some drift is expected; try whether only newer training rows give a better result"
            if self.options.timeCol
            else "a gain on validation rows may not hold on other rows; find out which of the two resembles production"
        )
        return [
            "training and validation rows differ: a linear classifier separates them with an AUC of "
            f"{seen.auc:.3f} ± {seen.error:.3f}, mostly by {names or 'many features together'}; {way}"
        ]

    def unseen(self) -> list[str]:
        """Warnings about categories that occur in validation rows and in no training row."""
        out = []
        for v, counts in self.indices.items():
            names = [*(self.names.level(v, k) for k in range(len(counts[TRAIN]) - 1)), "(no level)"]
            out += self._only_held(self.network.graph.name(v), names, counts[TRAIN], counts[VALIDATION])
        for v in self.versions:
            spreads = self.spreads[v]
            own = self.names.binary(v, encoded=False).nonzero()[:, 0]
            if len(own) and self.names.has_slot_names(v) and TRAIN in spreads and VALIDATION in spreads:
                names = [self.names.name(v, j) for j in own.tolist()]
                train, held = (spreads[s].support()[own] for s in (TRAIN, VALIDATION))
                out += self._only_held(self.network.graph.name(v), names, train, held)
        return out

    def _only_held(self, column: str, names: list[str], train: Tensor, held: Tensor) -> list[str]:
        only = (train == 0) & (held > 0)
        rows = int(held[only].sum())
        # Good-Turing: the share of new rows of the same kind that have an unseen level is the share of training rows whose
        # level occurs only once. The variance is Esty's (1983), as in RowHashes.
        n, m = max(self.rows[TRAIN], 1), self.rows[VALIDATION]
        single, double = float((train == 1).sum()), float((train == 2).sum())
        expected = m * single / n
        variance = expected + m * m * (single * (1 - single / n) + 2 * double) / n**2
        if rows < 3 or rows <= expected + ERRORS * math.sqrt(variance):
            return []
        order = [int(k) for k in torch.where(only, held, 0).argsort(descending=True)[: int(only.sum())]]
        named = ", ".join(f"{names[k]!r} in {int(held[k]):,}" for k in order[:SHOWN])
        more = f" and {len(order) - SHOWN} more" if len(order) > SHOWN else ""
        return [
            f"{rows:,} validation rows hold values of {column!r} that no training row has ({named}{more}; "
            f"chance would explain {expected:.1f} rows), so training cannot learn about them: train on rows "
            "with these values, or split by validationFraction"
        ]


def too_few_rows(gains: Tensor, weights: Tensor, verdict: Verdict, before: float) -> list[str]:
    """A warning if nothing was accepted, and there were too few rows to accept a gain of HOPED with a probability of
    POWER.

    The smallest gain that is accepted with probability POWER is (quantile of the level + quantile of POWER) standard
    errors of the judged gain; if no candidate gained, of the gain of the candidate that lost least. Choosing the best
    of many candidates makes the smallest gain larger still.

    Args:
        gains, weights: the gains that the guard judged by column (epoch and candidate) and block of rows, (C, B), and
            the blocks' weights, (B,).
        before: the original's metric.
    """
    totals = total_gain(gains)
    column = verdict.best if verdict.best >= 0 else int(totals.argmax())
    if verdict.accepted or verdict.level >= 1 or not bool(totals[column].isfinite()):
        return []
    best, weights = gains[column, weights > 0], weights[weights > 0]
    rest = best - best.sum() / weights.sum() * weights
    largest = rest.abs().max().clamp_min(1e-300)  # squares of diverged values may overflow
    error = share_of(float(largest * (rest / largest).norm() / weights.sum()), before)
    normal = NormalDist()
    smallest = (normal.inv_cdf(POWER) - normal.inv_cdf(verdict.level)) * error
    if not HOPED < smallest <= RUINED:
        return []
    return [
        f"there are few validation rows: a change like the best one found must gain at least {smallest:.0%} to "
        f"be accepted in {POWER:.0%} of cases (the standard error of its gain is {error:.1%} of the metric); "
        f"to show a gain of {HOPED:.0%}, use about {math.ceil((smallest / HOPED) ** 2):,} times as many "
        "validation rows"
    ]


def _rows(number: int, split: str) -> str:
    return f"{number:,} {split} row{'s' * (number != 1)}"


def _vector(x: Rows) -> Rows:
    return x if isinstance(x, SparseRows) else matrix(x)
