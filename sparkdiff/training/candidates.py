"""Candidates (copies of one network's trainable parameters that train with different settings) as the rows of one
matrix: their gradients, steps and scores, all at once; and their states, reduced to some candidates or joined.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.evaluation.scores import Score, Tallies
from sparkdiff.evaluation.split_batches import Data
from sparkdiff.objectives.metric import Metric
from sparkdiff.objectives.objective import Batch as BatchLoss, Objective, Rows as RowLosses
from sparkdiff.options import Options
from sparkdiff.pipeline.graph import LEAVES, Version
from sparkdiff.stages.base import StageModule
from sparkdiff.stages.forest import Trees
from sparkdiff.tensors.device import home
from sparkdiff.tensors.rows import Rows, SparseRows, as_sparse
from sparkdiff.tensors.team import ALONE, Team
from sparkdiff.training.affine import AffineMargin, places
from sparkdiff.training.augmentation import Augmenter, Draw, Target, View
from sparkdiff.training.local_steps import LocalSteps
from sparkdiff.training.monotone import MonotonePenalty
from sparkdiff.training.optimizers import EpochSteps, FirstOrderSteps
from sparkdiff.training.recipes import ONCE_AN_EPOCH, Recipe
from sparkdiff.training.updates import DenseUpdates, LazyUpdates


class Candidates:
    """K candidates: each is a row of u (K, p), in natural units; its parameters are p0 + unit * u, or what a constraint
    makes of p0 and unit * u.

    Attributes:
        updates: the parameters that a step changes, and how they are read and written.
        vectors: u, its moments and its average over steps, (K, p) each.
        total, total_weight: sums of the losses (K,) and of the weights over the epoch so far.
        counts: whether every batch is known to hold a row of weight > 0, so that no step has to check.
        rate: on a GPU the learning rate of the steps, a tensor (); see `set_rate`.
        among: all candidates of the training run, including stopped ones, so that each gets the same random draws as if
            all were here.
    """

    def __init__(
        self,
        recipes: Sequence[Recipe],
        options: Options,
        updates: DenseUpdates,
        monotone: MonotonePenalty | None = None,
        *,
        counts: bool = False,
        among: Sequence[Recipe] | None = None,
    ):
        self.recipes, self.options, self.updates, self.monotone = list(recipes), options, updates, monotone
        self.among = list(among or recipes)
        self.network, self.lazy, self.counts = updates.network, isinstance(updates, LazyUpdates), counts
        self.augmenter = Augmenter(self.network, recipes, updates.start.device, self.among)
        self.augments = any(r.augments for r in recipes)
        self.u = updates.start.new_zeros(len(recipes), len(updates.start))

        def column(values: Iterable[float]) -> Tensor:
            return updates.start.new_tensor(list(values))[:, None]

        self.anchor = column(r.regAnchor for r in recipes)
        self.ema_weight = column(1 - r.ema for r in recipes) if any(r.ema for r in recipes) else None
        self.average = self.u.clone() if self.ema_weight is not None else self.u
        rates = [0.0 if r.optimizer in ONCE_AN_EPOCH else r.learningRate for r in recipes]
        self.base = max(rates)
        rate = column(r / (self.base or 1.0) for r in rates)
        if bool((updates.units.rate != 1).any()):
            rate = rate * updates.units.rate
        kinds = sorted({r.optimizer for r in recipes} - set(ONCE_AN_EPOCH))
        if len(kinds) > 1:
            raise InputError(f"candidates that train together share one first-order optimizer, not {', '.join(kinds)}")
        self.optimizer = FirstOrderSteps(kinds[0], self.u, None if bool((rate == 1).all()) else rate) if kinds else None
        self.epoch_steps = EpochSteps(recipes, updates.start)
        self.rate, self._factor = self.u.new_tensor(self.base), 1.0
        self.vectors = {"u": self.u}
        if self.optimizer:
            self.vectors |= {"mean": self.optimizer.mean, "square": self.optimizer.square}
        if self.ema_weight is not None:
            self.vectors["average"] = self.average
        self.total, self.total_weight = torch.zeros_like(updates.matrix.losses), torch.zeros_like(updates.matrix.weight)
        apart = options.localSteps > 1 and options.processes > 1
        self.local = LocalSteps(options.localSteps, options.slowMomentum, self.u) if apart else None

    # A step ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def enter(self, batches: Sequence[Mapping[Version, Rows]], team: Team = ALONE) -> None:
        """Choose the parameters that may change in the next steps, which use this group of batches."""
        self.updates.choose(self.vectors, batches, team)

    def add(
        self,
        values: dict[Version, Rows],
        target: Target,
        objective: Objective,
        draw: Draw,
        *,
        groups: Mapping[str, Tensor] | None = None,
        team: Team = ALONE,
    ) -> None:
        """Add weight * loss of these rows (there may be none), and its gradient, to the sums.

        Args:
            groups: the codes (n,) of the columns that the objective's penalties name.
        """
        self.updates.matrix.weight.add_(target[1].sum())
        counted = draw.whole[1][1] if draw.whole else target[1]  # a row of weight 0 may be mixed with one that counts
        if objective.batch is None and not self.counts and not bool((counted > 0).any()):
            return
        views = self.augmenter.views(values, target, draw)
        self.add_views(views, self.updates.inputs(values), objective, groups=groups, team=team)

    def add_views(
        self,
        views: Sequence[View],
        inputs: Mapping[Version, SparseRows],
        objective: Objective,
        *,
        groups: Mapping[str, Tensor] | None = None,
        team: Team = ALONE,
    ) -> None:
        """Do the work of `add` for rows that are already augmented for each candidate; nothing here waits for a GPU.

        Args:
            inputs: sparse inputs with the columns renumbered, for updates of active columns only; else empty.
        """
        updates, matrix = self.updates, self.updates.matrix
        slopes = updates.slopes()
        if len(views) > 1 and slopes is not None and objective.batch is None and self._reads_leaves():
            self._add_leaves(views, slopes, objective)
            return
        parts: list[tuple[dict[Version, Tensor], Tensor]] = []
        for rows, seen, targets in views:
            seen = {**seen, **{v: x.with_values(as_sparse(seen[v]).values) for v, x in inputs.items()}}
            margin = updates.margins(rows, slopes, seen)
            loss, gradient = row_losses(objective, margin.detach(), targets)
            self._add_curvature(rows, margin.detach(), seen, objective, targets)
            if objective.batch is not None:
                more, slope = batch_losses(objective.batch, margin.detach(), targets, groups or {}, team)
                loss, gradient = loss + more, gradient + slope
            if len(rows) == len(self.recipes):
                matrix.losses.add_(loss)
            else:
                matrix.losses[updates.numbers(rows)] += loss
            if updates.affine is not None and slopes is not None:
                parts.append(updates.affine.slope_gradients(slopes, seen, gradient))
            else:
                updates.backward(margin, gradient)
        if slopes is not None:
            gradients, constant = parts[0]
            if len(parts) > 1:
                order = self.augmenter.order
                gradients = {v: torch.cat([found[v] for found, _ in parts])[order] for v in gradients}
                constant = torch.cat([found for _, found in parts])[order]
            updates.back(slopes, gradients, constant)

    def _reads_leaves(self) -> bool:
        """True if all margins are sums over the leaves of one stage, and nothing else."""
        return self.updates.affine is not None and [name for name, _ in self.updates.affine.reads] == [LEAVES]

    def _add_leaves(self, views: Sequence[View], slopes: AffineMargin, objective: Objective) -> None:
        """Do the work of `add` for candidates whose rows reach different leaves: with one look-up for all views, and
        the same results, bit for bit, as with one look-up per view.
        """
        updates, matrix = self.updates, self.updates.matrix
        assert updates.affine is not None
        [(version, slope)] = slopes.of.items()
        seen_by = {k: seen[version] for rows, seen, _ in views for k in rows}
        own = [seen_by[k] for k in range(len(self.recipes))]
        leaves = {version: places(own, slope.shape[2], slope.shape[1])}
        margin = updates.affine.margins(slopes, leaves).detach()
        gradient = torch.empty_like(margin)
        for rows, seen, targets in views:
            adjacent = rows[-1] - rows[0] == len(rows) - 1
            at = slice(rows[0], rows[-1] + 1) if adjacent else updates.numbers(rows)  # a slice is no copy
            loss, gradient[at] = row_losses(objective, margin[at], targets)
            matrix.losses[at] += loss
            self._add_curvature(rows, margin[at].detach(), seen, objective, targets)
        updates.back(slopes, *updates.affine.slope_gradients(slopes, leaves, gradient))

    def _add_curvature(
        self,
        rows: list[int],
        margin: Tensor,
        values: Mapping[Version, Rows],
        objective: Objective,
        targets: Sequence[Target],
    ) -> None:
        """Add weight * second derivative of the loss with respect to the head's leaves, for candidates that take Newton
        steps.
        """
        matrix, newton = self.updates.matrix, self.epoch_steps.newton
        if not newton or self.updates.affine is None:
            return
        room = matrix.views(matrix.curvature)[self.network.graph.head.position]["leaves"]
        for j, k in enumerate(newton):
            if k in rows:
                second = second_derivative(objective, margin[rows.index(k)], targets)
                room[j] += self.updates.affine.leaf_curvature(values, second)

    def changing(self) -> list[Tensor]:
        """All tensors that a step changes."""
        once, matrix = self.epoch_steps, self.updates.matrix
        steps = [self.optimizer.steps] if self.optimizer else []
        sums = [matrix.sums, self.total, self.total_weight, once.gradient, once.curvature]
        return [*self.vectors.values(), matrix.flat, *sums, *steps]

    def set_rate(self, factor: float) -> Tensor:
        """Set the learning rate on a GPU by the schedule's factor; return the tensor, which CUDA graphs read."""
        if factor != self._factor:
            self.rate.fill_(self.base * factor)
            self._factor = factor
        return self.rate

    @torch.no_grad()
    def step(self, scale: float, factor: float = 1.0) -> None:
        """Take one optimizer step along the summed gradient; `scale` is the objective's scale, `factor` the schedule's
        factor of the learning rate.
        """
        updates, matrix = self.updates, self.updates.matrix
        self.total += matrix.losses
        self.total_weight += matrix.weight
        on_cpu = self.u.is_cpu
        if self.monotone is not None:
            self._penalise(self.monotone, float(matrix.weight) / scale if on_cpu else matrix.weight / scale)
        self.epoch_steps.add(updates)
        if self.optimizer is None:
            return
        vectors = updates.current(self.vectors)
        u = vectors["u"]
        gradient = matrix.gradient_by_u(u)
        gradient *= scale / float(matrix.weight) if on_cpu else scale / matrix.weight
        gradient.addcmul_(u, self.anchor)
        if self.options.gradientClip is not None:
            gradient.mul_(
                (self.options.gradientClip / gradient.norm(dim=1, keepdim=True).clamp_min(1e-300)).clamp_max(1)
            )
        rate = self.base * factor if on_cpu else self.set_rate(factor)
        self.optimizer.step(u, gradient, rate, (vectors["mean"], vectors["square"]), updates.at(self.optimizer.rate))
        updates.load(u)
        if self.ema_weight is not None:
            vectors["average"].lerp_(u, self.ema_weight)

    @torch.no_grad()
    def step_apart(self, team: Team, scale: float, factor: float, *, last: bool) -> None:
        """Take one step along the gradient of this process's rows alone (there may be none). Then, if it is time, the
        processes meet, see `LocalSteps.meet`.

        Args:
            last: whether this is the last step of the epoch, after which the processes meet in any case.
        """
        local, matrix = self.local, self.updates.matrix
        assert local is not None
        if (
            not local.begun and team.rank
        ):  # a checkpoint has the sums of all processes: the first process continues with them, the others from 0
            self.total.zero_()
            self.total_weight.zero_()
        local.begun = True
        if bool(matrix.weight > 0):
            self.step(scale, factor)
        local.alone += 1
        if local.alone < local.every and not last:
            return
        moments = [*self.optimizer.state().values()] if self.optimizer else []
        local.meet(team, [*moments, *([self.average] if self.ema_weight is not None else [])], factor)
        self.updates.load(self.u)
        if self.ema_weight is not None:  # candidates without an average over steps are measured at u
            self.average.copy_(torch.where(self.ema_weight == 1, self.u, self.average))
        local.record_start()
        team.sum_(self.total, self.total_weight)
        local.begun = last  # else the first process continues with the sums, and the others from 0

    def _penalise(self, monotone: MonotonePenalty, factor: float | Tensor) -> None:
        """Add the penalty's gradient, times a factor, to the sums; every process does the same."""
        slopes = self.updates.slopes()
        assert slopes is not None
        gradients = {v: factor * gradient for v, gradient in monotone.gradients(slopes).items()}
        self.updates.back(slopes, gradients, torch.zeros_like(slopes.constant))

    # An epoch -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def end_epoch(self, scale: float) -> list[float]:
        """Take the steps that are due once an epoch; return the mean training losses of the epoch, and start the next one."""
        updates, once = self.updates, self.epoch_steps.candidates
        updates.finish(self.vectors)
        if once:
            factor = scale / float(self.total_weight)
            self.epoch_steps.step(self.u, updates.start, updates.units, self.anchor, factor)
            updates.load_all(self.u)
            if self.ema_weight is not None:
                self.average[once] = self.u[once]
        means = (self.total / self.total_weight).tolist()
        self.total.zero_()
        self.total_weight.zero_()
        return means

    @torch.no_grad()
    def scores(self, data: Data, split: str, metric: Metric) -> tuple[list[Score], Callable[[int], Tensor]]:
        """The score of each candidate on a split, over all processes; and a function that copies the parameters (p,)
        with which the k-th candidate was measured; the function is valid until the next step.
        """
        every = list(range(len(self.recipes)))
        tallies = Tallies(metric, self.network.head, len(every))
        measured = self.updates.prepare_measurement(self.vectors)
        for batch, label, weight, block in data.batches(split):
            slopes, values = measured(data.values(batch))
            tallies.add_all(self.updates.margins(every, slopes, values), label, weight, block)
        return tallies.scores(data.team), self.updates.parameters(self.vectors)

    # Saving and leaving ---------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        self.updates.store(self.vectors)
        return {
            "flat": None if self.lazy else self.updates.matrix.flat,
            "u": self.u,
            "average": self.average,
            "total": self.total,
            "totalWeight": self.total_weight,
            "optimizer": self.optimizer.state() if self.optimizer else None,
            **self.epoch_steps.state(),
            **({"momentum": self.local.momentum} if self.local is not None else {}),
        }

    @torch.no_grad()
    def load(self, state: Mapping[str, Any]) -> None:
        self.u.copy_(state["u"])
        if not self.lazy:
            self.updates.matrix.flat.copy_(state["flat"])
        if self.ema_weight is not None:
            self.average.copy_(state["average"])
        self.total.copy_(state["total"])
        self.total_weight.copy_(state["totalWeight"])
        if self.optimizer:
            self.optimizer.load(state["optimizer"])
        self.epoch_steps.load(state)
        if self.local is not None and "momentum" in state:
            self.local.load(state["momentum"])

    def subset(self, rows: list[int]) -> "Candidates":
        """These candidates alone, in their current state."""
        recipes = [self.recipes[k] for k in rows]
        updates = self.updates.for_candidates(recipes)
        kept = Candidates(recipes, self.options, updates, self.monotone, counts=self.counts, among=self.among)
        kept.load(state_of(self.state(), rows, self.epoch_steps.newton))
        return kept


def can_be_lazy(
    modules: Iterable[StageModule], recipes: Iterable[Recipe], options: Options, monotone: MonotonePenalty | None
) -> bool:
    """True if no step needs all parameters, so that a step may change those of its active columns only. A clipped norm,
    bounds, settling thresholds of trees, a penalty, Newton's curvature and local steps need all parameters.
    """
    return (
        options.gradientClip is None
        and options.localSteps == 1
        and monotone is None
        and not any(m.has_bounds() or (isinstance(m, Trees) and m.settles()) for m in modules)
        and not any(r.optimizer == "newton" for r in recipes)
    )


def row_losses(objective: Objective, margin: Tensor, targets: Sequence[Target]) -> tuple[Tensor, Tensor]:
    """Sums (k,) of weight * loss, and their gradient with respect to the margins (k, n) or (k, n, classes)."""
    if objective.rows is None:
        return margin.new_zeros(len(margin)), torch.zeros_like(margin)
    if objective.exact is None:
        return _by_autograd(objective.rows, margin, targets, elementwise=objective.elementwise)
    loss, gradient = _apply_weights(*objective.exact(margin, targets[0][0]), targets[0][1])
    for label, weight in targets[1:]:
        more, slope = _apply_weights(*objective.exact(margin, label), weight)
        loss, gradient = loss + more, gradient + slope
    return loss, gradient


def _apply_weights(loss: Tensor, slope: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return loss @ weight, slope.mul_(weight if slope.ndim == 2 else weight[:, None])


def _by_autograd(
    rows: RowLosses, margin: Tensor, targets: Sequence[Target], *, elementwise: bool
) -> tuple[Tensor, Tensor]:
    margin, count = margin.requires_grad_(), len(margin)
    total = margin.new_zeros(count)
    for label, weight in targets:
        if elementwise:
            loss = rows(margin.flatten(0, 1), label.repeat(count), weight.repeat(count)).view(count, -1)
        else:
            loss = torch.stack([rows(m, label, weight) for m in margin])
        total = total + loss @ weight
    [gradient] = torch.autograd.grad(total.sum(), [margin])
    return total.detach(), gradient


def second_derivative(objective: Objective, margin: Tensor, targets: Sequence[Target]) -> Tensor:
    """Weight times the second derivative of the loss with respect to the margin, (n,); 0 for losses without one
    (absolute, quantile).
    """
    rows = objective.rows
    if rows is None:
        return torch.zeros_like(margin)
    with torch.enable_grad():
        margin = margin.clone().requires_grad_()
        total = torch.stack([rows(margin, label, weight) @ weight for label, weight in targets]).sum()
        [first] = torch.autograd.grad(total, [margin], create_graph=True)
        if not first.requires_grad:
            return torch.zeros_like(margin)
        [second] = torch.autograd.grad(first.sum(), [margin], allow_unused=True)
    return torch.zeros_like(margin) if second is None else second.detach()


def batch_losses(
    batch: BatchLoss, margin: Tensor, targets: Sequence[Target], groups: Mapping[str, Tensor], team: Team
) -> tuple[Tensor, Tensor]:
    """This process's share (k,) of weight * loss of the rows of all processes, and the gradient of that loss with respect
    to this process's margins.
    """
    whole = team.gather(margin.transpose(0, 1)).transpose(0, 1).contiguous().requires_grad_()
    first = int(team.gather(torch.tensor([margin.shape[1]], device=margin.device))[: team.rank].sum())
    codes = {name: team.gather(code) for name, code in groups.items()}
    total = margin.new_zeros(len(margin))
    for label, weight in targets:
        y, w = team.gather(label), team.gather(weight)
        if bool((w > 0).any()):
            total = total + w.sum() * torch.stack([batch(m, y, w, codes) for m in whole])
    gradient = torch.zeros_like(margin)
    if total.requires_grad:
        [found] = torch.autograd.grad(total.sum(), [whole])
        gradient = found[:, first : first + margin.shape[1]]
    return total.detach() / team.world, gradient


State = Mapping[str, Any]
"""A state of candidates (`Candidates.state`)."""


def state_at_home(value: Any) -> Any:
    """A state with all its tensors on the CPU."""
    if isinstance(value, Tensor):
        return home(value)
    if isinstance(value, Mapping):
        return {key: state_at_home(x) for key, x in value.items()}
    return [state_at_home(x) for x in value] if isinstance(value, list) else value


def state_of(state: State, rows: Sequence[int], newton: Sequence[int]) -> dict[str, Any]:
    """The state of the candidates `rows`, which are in ascending order.

    Args:
        newton: indices of the candidates in `state` that take Newton steps.
    """
    at = torch.tensor(list(rows), device=state["u"].device)
    out = dict(state)
    for name in ("flat", "u", "average", "total"):
        out[name] = state[name][at] if state[name] is not None else None
    if state["optimizer"]:
        out["optimizer"] = {n: x[at] if x.shape == state["u"].shape else x for n, x in state["optimizer"].items()}
    if "momentum" in state:
        out["momentum"] = state["momentum"][at]
    out["whole"] = state["whole"][at] if len(state["whole"]) else state["whole"]
    out["bent"] = state["bent"][[j for j, k in enumerate(newton) if k in rows]]
    out["slow"] = {new: state["slow"][k] for new, k in enumerate(rows) if k in state["slow"]}
    return out


def join_states(parts: Sequence[State]) -> dict[str, Any]:
    """The state of the candidates of all parts, one part after the other."""
    first = parts[0]
    out = dict(first)
    for name in ("flat", "u", "average", "total"):
        out[name] = None if first[name] is None else torch.cat([part[name] for part in parts])
    starts = list(itertools.accumulate((len(part["u"]) for part in parts), initial=0))
    stepping = [part for part in parts if part["optimizer"]]
    out["optimizer"] = None
    if stepping:
        # Candidates that step once an epoch have no moments: if a part has only such candidates, their moments are 0.
        whole = {
            n: torch.cat([(p["optimizer"] or {}).get(n, torch.zeros_like(p["u"])) for p in parts])
            for n in ("mean", "square")
        }
        out["optimizer"] = {**stepping[0]["optimizer"], **whole}
    if any(len(part["whole"]) for part in parts):
        out["whole"] = torch.cat([p["whole"] if len(p["whole"]) else torch.zeros_like(p["u"]) for p in parts])
    out["bent"] = torch.cat([part["bent"] for part in parts])
    out["slow"] = {k + start: x for part, start in zip(parts, starts, strict=False) for k, x in part["slow"].items()}
    return out


def consecutive_runs(number: int, parts: int) -> list[list[int]]:
    """The numbers 0, ..., number - 1 in at most `parts` consecutive runs of about the same length, none of them empty."""
    bounds = [number * part // parts for part in range(parts + 1)]
    return [list(range(a, b)) for a, b in itertools.pairwise(bounds) if b > a]
