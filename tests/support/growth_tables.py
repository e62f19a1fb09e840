"""Tables of generated rows for growth, without Spark: heads of each kind, numbers and categories, planted effects."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparkdiff.data.blocks import MAX_BLOCKS
from sparkdiff.growth import parts
from sparkdiff.growth.criterion import Criterion, CriterionSpecification
from sparkdiff.growth.part import Item, ItemResult, ItemTraining, Trainer
from sparkdiff.growth.row_tensors import Column, Split, Table
from sparkdiff.options import Options
from sparkdiff.stages.base import LabelStats
from sparkdiff.stages.linear import GeneralizedLinearRegression, LinearRegression, LogisticRegression
from sparkdiff.stages.predictor import Predictor

F64 = torch.float64
Planted = Callable[[dict[str, Tensor]], Tensor]
HEADS = ("linear", "poisson", "binary", "softmax")
LEVELS = (6, 4, 40)
"""Values of the categories a, b and user; x and y are numbers."""


def head_of(kind: str, width: int) -> Predictor:
    zero = torch.zeros(width, dtype=F64)
    if kind == "linear":
        return LinearRegression(zero, torch.zeros((), dtype=F64), 1.0, True, None)
    if kind == "poisson":
        return GeneralizedLinearRegression(
            zero,
            torch.zeros((), dtype=F64),
            True,
            family="poisson",
            link="log",
            link_power=float("nan"),
            variance_power=float("nan"),
            shows_link=False,
        )
    rows = 3 if kind == "softmax" else 1
    return LogisticRegression(
        zero.expand(rows, -1).clone(),
        torch.zeros(rows, dtype=F64),
        True,
        num_classes=max(rows, 2),
        thresholds=None,
        threshold=0.5,
        bounds={},
        shown=("rawPredictionCol", "probabilityCol", "predictionCol"),
        uid="head",
    )


def table_of(
    kind: str = "poisson", rows: int = 3000, seed: int = 0, planted: Planted | None = None
) -> tuple[Table, Criterion]:
    """Rows of which a third is held out, and the criterion of a head of this kind.

    The features are x, y and the one-hot block of b; a and user are columns that the head does not read. The label follows
    0.5 * x plus what is planted; the margin of the head is 0.5 * x, so what is planted is what can be gained.

    Args:
        planted: columns x, y, a, b, user (n,) -> what is added to the margin, (n,).
    """
    random = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, rows, generator=random, dtype=F64)
    a, b, user = (torch.randint(0, k, (rows,), generator=random).to(F64) for k in LEVELS)
    values = torch.stack([x, y, a, b, user], 1)
    features = torch.cat([values[:, :2], torch.nn.functional.one_hot(b.long(), LEVELS[1]).to(F64)], 1)
    extra = planted({"x": x, "y": y, "a": a, "b": b, "user": user}) if planted else torch.zeros_like(x)
    truth, margin = 0.5 * x + extra, 0.5 * x
    if kind == "linear":
        label = truth + 0.5 * torch.randn(rows, generator=random, dtype=F64)
    elif kind == "poisson":
        label = torch.poisson(truth.exp(), generator=random)
    elif kind == "binary":
        label = (torch.rand(rows, generator=random, dtype=F64) < torch.sigmoid(truth)).to(F64)
    else:
        logits = torch.stack([torch.zeros_like(x), truth, -truth], 1)
        label = torch.multinomial(torch.softmax(logits, 1), 1, generator=random)[:, 0].to(F64)
        margin = torch.stack([torch.zeros_like(x), margin, -margin], 1)
    weight, block = torch.ones_like(x), torch.randint(0, MAX_BLOCKS, (rows,), generator=random)
    held = torch.arange(rows) % 3 == 0

    def split(which: Tensor) -> Split:
        return Split(*(t[which] for t in (features, values, label, weight, block, margin)))

    columns = (
        Column("x", "x"),
        Column("y", "y"),
        Column("a", "a_index", LEVELS[0], tuple("abcdef"), indexes=True),
        Column("b", "b_index", LEVELS[1], tuple("pqrs"), indexes=True),
        Column("user", "user_index", LEVELS[2], indexes=True, entity=True),
    )
    table = Table("features", columns, split(~held), split(held), 3 if kind == "softmax" else 0)
    return table, specification_of(kind, table, label).criterion()


def specification_of(kind: str, table: Table, label: Tensor, **options: Any) -> CriterionSpecification:
    """What the criterion of such a table is made of."""
    assert isinstance(table.train.features, Tensor)
    head = head_of(kind, table.train.features.shape[1])
    classes = (
        torch.bincount(label.long(), minlength=head.classes) if head.classes else torch.empty(0, dtype=torch.int64)
    )
    stats = LabelStats(float(label.mean()), float(label.std()), float(label.min()), float(label.max()), classes)
    return CriterionSpecification(head, ("prediction",), Options.of(options), stats)


def share_gained(trainer: Trainer, epochs: int, table: Table, criterion: Criterion, planted: Planted) -> float:
    """Of what is planted, the share that the best epoch of a training gains on validation rows."""
    held, found = table.validation, list[float]()
    for _ in range(epochs):
        trainer.epoch(table, criterion)
        found.append(criterion.score(held.margin + trainer.part().output(held), held).mean)
    truth = planted(dict(zip(("x", "y", "a", "b", "user"), held.values.T, strict=True)))
    if table.classes:
        truth = torch.stack([0 * truth, truth, -truth], 1)
    before, best = (criterion.score(m, held).mean for m in (held.margin, held.margin + truth))
    return (before - min(found)) / (before - best)


def trained(item: Item, table: Table, criterion: Criterion) -> ItemResult:
    before = criterion.score(table.validation.margin, table.validation)
    course = ItemTraining(item, parts.trainer(item, table), before.mean)
    while not course.is_done:
        course.step(table, criterion, before.blocks)
    return course.result()
