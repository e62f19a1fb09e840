"""Loss that growth minimises on training rows and metric that it measures on validation rows, as functions of a margin."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparkdiff.evaluation.scores import Score, Tally
from sparkdiff.growth.row_tensors import Split
from sparkdiff.objectives import losses, metrics
from sparkdiff.objectives.metric import Metric
from sparkdiff.objectives.objective import Objective
from sparkdiff.options import Options
from sparkdiff.stages.base import LabelStats
from sparkdiff.stages.predictor import Predictor
from sparkdiff.tensors.team import ALONE

LEAST = 1e-6
"""Smallest second derivative of a row's loss, as a share of the mean over the rows: otherwise Newton steps of rows that are
predicted with near certainty would be unbounded."""


@dataclass(frozen=True)
class Criterion:
    """The loss and the metric of a head (the last linear stage).

    Attributes:
        objective: the loss, a mean over rows.
        unit: the natural unit of the margin: its change if the label changes by one standard deviation; 1 for a log-ratio.
    """

    head: Predictor
    objective: Objective
    metric: Metric
    unit: float

    def rows(self, margin: Tensor, split: Split) -> Tensor:
        """The loss of each row, (n,), unweighted."""
        assert self.objective.rows is not None
        return self.objective.rows(margin, split.label, split.weight)

    def loss(self, margin: Tensor, split: Split) -> Tensor:
        """The weighted mean of the loss, ()."""
        return split.mean(torch.where(split.weight > 0, self.rows(margin, split), 0.0))

    def slopes(self, margin: Tensor, split: Split) -> tuple[Tensor, Tensor]:
        """First and second derivative of each row's loss with respect to its margin, both shaped like the margin, unweighted.

        For k margins, the second derivative is the diagonal of the Hessian. It is made positive: where the loss is concave, it is
        a small number; for a loss without any curvature, it is chosen so that the Newton step slope / curvature of a typical row
        is one `unit` of the margin.
        """
        with torch.enable_grad():
            m = margin.detach().clone().requires_grad_()
            [slope] = torch.autograd.grad(self.rows(m, split).sum(), m, create_graph=True)
            if not slope.requires_grad:  # a piecewise linear loss
                curve = torch.zeros_like(m)
            elif m.ndim == 1:
                [curve] = torch.autograd.grad(slope.sum(), m)
            else:
                each = [
                    torch.autograd.grad(slope[:, k].sum(), m, retain_graph=True)[0][:, k] for k in range(m.shape[1])
                ]
                curve = torch.stack(each, 1)
        curve = curve.detach().nan_to_num(0.0).clamp_min(0)
        slope, typical = slope.detach(), float(split.mean(curve if curve.ndim == 1 else curve.mean(1)))
        if typical > 0:
            return slope, curve.clamp_min(LEAST * typical)
        steepness = float(split.mean(slope.abs() if slope.ndim == 1 else slope.abs().mean(1)))
        return slope, torch.full_like(curve, steepness / self.unit if steepness > 0 else 1.0)

    @torch.no_grad()
    def size(self, margin: Tensor, split: Split) -> float:
        """Scale of the metric, by which penalties are multiplied. It does not vanish if the metric is near zero.

        It is the absolute value of the metric, or the mean absolute deviation of the rows' values from the metric if that is
        larger. (For a loss that is never negative, this deviation is at most twice the loss.) For a metric that is not a mean
        over rows, the deviation is replaced by the distance from 1 if larger values are better, and else by 0.
        """
        value = self.score(margin, split)
        if self.metric.rows is not None:
            rows = torch.where(split.weight > 0, self.metric.rows(margin, split.label, split.weight), 0.0)
            apart = float(split.mean((rows - value.value).abs()))
        else:
            apart = abs(1 - value.value) if self.metric.larger else 0.0
        return max(abs(value.mean), apart)

    @torch.no_grad()
    def loss_size(self, margin: Tensor, split: Split) -> float:
        """Scale of the loss, computed like the scale of the metric in `size`."""
        rows = torch.where(split.weight > 0, self.rows(margin, split), 0.0)
        mean = split.mean(rows)
        return max(abs(float(mean)), float(split.mean((rows - mean).abs())))

    @torch.no_grad()
    def score(self, margin: Tensor, split: Split) -> Score:
        """The metric, as one sum per block of the guard (a group of rows that the guard treats as one independent unit)."""
        tally = Tally(self.metric, self.head)
        tally.add(margin, split.label, split.weight, split.block)
        return tally.score(ALONE)


@dataclass(frozen=True)
class CriterionSpecification:
    """Ingredients of a criterion. Unlike a criterion, they can be sent to another process.

    Attributes:
        head: the last linear stage.
        columns: output columns of the head.
        label: statistics of the label on the training rows.
    """

    head: Predictor
    columns: tuple[str, ...]
    options: Options
    label: LabelStats

    def criterion(self) -> Criterion:
        """The criterion with these ingredients.

        Raises:
            InputError: see `losses.resolve` and `metrics.resolve`.
        """
        o, head = self.options, self.head
        objective = losses.resolve(o.loss, o.lossParams, head, self.columns, self.label)
        metric = metrics.resolve(o, objective, head, self.columns, self.label)
        return Criterion(head, objective, metric, head.margin_unit(self.label))
