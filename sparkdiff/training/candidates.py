"""Candidates of one network in training, as the rows of one matrix: their margins, gradients and steps, all at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparkdiff.evaluation.data import Data
from sparkdiff.evaluation.scores import Score, Tally
from sparkdiff.objectives.losses import Batch, Objective
from sparkdiff.objectives.metrics import Metric
from sparkdiff.options import Options
from sparkdiff.pipeline.graph import Version
from sparkdiff.pipeline.network import Network, routed_versions
from sparkdiff.rows import Rows, SparseRows, below, taken
from sparkdiff.stages.base import FeatureStats, StageModule
from sparkdiff.team import ALONE, Team
from sparkdiff.training.active_columns import Reach, Span, pieces
from sparkdiff.training.affine import Folded, Slopes
from sparkdiff.training.augmentation import Target, augmented
from sparkdiff.training.monotone import Monotone
from sparkdiff.training.optimizers import FirstOrder
from sparkdiff.training.recipes import Recipe
from sparkdiff.training.units import Scales, flattened, trained

ONCE_AN_EPOCH = ("lbfgs", "newton")
"""Optimizers that step along the gradient of all rows."""


@dataclasses.dataclass(frozen=True)
class Draw:
    """Where a batch stands in the training, which decides what is drawn for its augmentation.

    Attributes:
        shards: (virtual shard, rows) of this process's rows, in their order; of `whole`, where it is given.
        key: seed, epoch and step.
        stats: of the network's fixed inputs.
        whole: values and target of all rows of the virtual shards of which this process's rows are a part: what is drawn for
            a row depends on those before it, and it may be mixed with any of them.
        own: this process's rows (n,) among these.
    """

    shards: Sequence[tuple[int, int]]
    key: tuple[int, ...]
    stats: Mapping[Version, FeatureStats]
    whole: tuple[Mapping[Version, Rows], Target] | None = None
    own: Tensor | None = None


class Candidates:
    """K candidates: each is a row of u (K, p), in natural units; its parameters are p0 + unit * u, or what a
    constraint makes of p0 and unit * u.

    The parameters of a stage lie in a span's `flat` as they do in a network, so that the same memory is read as (K, *shape) by a
    folded network and as (*shape) by the candidates' own networks where there is none.

    Args:
        reach: how to train on the columns alone that a batch reaches; None trains all parameters at every step.

    Attributes:
        span: all parameters, or those that the batch of the current step reaches.
    """

    def __init__(
        self, network: Network, recipes: Sequence[Recipe], options: Options, scales: Scales, folded: Folded | None,
        monotone: Monotone | None = None, reach: Reach | None = None,
    ):  # fmt: skip
        self.network, self.recipes, self.options, self.scales = network, list(recipes), options, scales
        self.folded, self.head, self.monotone, self.reach = folded, network.head, monotone, reach
        self.start, self.routed = flattened(network), routed_versions(network)
        if reach is not None:
            self.start, self.scales = reach.start, reach.scales
        count = len(recipes)
        self.curved = [k for k, r in enumerate(recipes) if r.optimizer == "newton"]
        self.u = torch.zeros(count, len(self.start), dtype=torch.float64)
        modules = [network.module(i) for i in network.positions]
        self.projects, self.settles = any(m.has_bounds() for m in modules), any(m.settles() for m in modules)
        assert reach is None or can_reach(modules, recipes, options, monotone)
        self.columns: dict[Version, Tensor] = {} if reach is None else reach.none()  # those that the span is of
        self.near: dict[str, Tensor] = {}  # what the candidates are at the span's entries
        self.places = torch.empty(0, dtype=torch.int64)  # ... and where in (K, p), read row by row
        self.span = self._whole() if reach is None else reach.span(self.columns, count)
        self.clones = [self._clone(k) for k in range(count)] if self.projects or folded is None else []

        def column(values: Iterable[float]) -> Tensor:
            return torch.tensor(list(values), dtype=torch.float64)[:, None]

        self.anchor = column(r.regAnchor for r in recipes)
        self.forget = column(1 - r.ema for r in recipes) if any(r.ema for r in recipes) else None
        self.average = self.u.clone() if self.forget is not None else self.u
        rates = [0.0 if r.optimizer in ONCE_AN_EPOCH else r.learningRate for r in recipes]
        self.base = max(rates)
        rate = column(r / (self.base or 1.0) for r in rates)
        if bool((self.scales.rate != 1).any()):
            rate = rate * self.scales.rate
        kind = next((r.optimizer for r in recipes if r.optimizer not in ONCE_AN_EPOCH), None)
        self.optimizer = FirstOrder(kind, self.u, None if bool((rate == 1).all()) else rate) if kind else None
        self.slow = {
            k: torch.optim.LBFGS([torch.zeros_like(self.start)], r.learningRate, max_iter=1)
            for k, r in enumerate(recipes)
            if r.optimizer == "lbfgs"
        }
        # Of the epoch so far, for those and for Newton's steps.
        self.whole = torch.zeros_like(self.u) if self.slow or self.curved else torch.empty(0)
        self.bent = torch.zeros_like(self.curvature)
        self.total, self.total_weight = torch.zeros_like(self.losses), torch.zeros_like(self.weight)
        groups: dict[tuple[float, ...], list[int]] = {}
        for k, r in enumerate(recipes):
            groups.setdefault((r.noise, r.mask, r.mixup), []).append(k)
        self.groups = list(groups.values())
        self.inverse = torch.tensor([k for rows in self.groups for k in rows]).argsort()

    def _whole(self) -> Span:
        return Span(
            self.network, pieces(self.network), self.start, self.scales, len(self.recipes), curved=len(self.curved),
            folded=self.folded,
        )  # fmt: skip

    def _clone(self, k: int) -> Network:
        """A network whose trainable parameters are this candidate's, in the same memory."""
        clone, first = self.network.clone(), 0
        for _, _, p in trained(clone):
            last = first + p.numel()
            p.data, p.grad = self.flat[k, first:last].view_as(p), self.gradient[k, first:last].view_as(p)
            first = last
        return clone

    @property
    def augments(self) -> bool:
        """Whether a candidate trains on rows that weren't seen."""
        return any(r.augments for r in self.recipes)

    @property
    def sums(self) -> Tensor:
        return self.span.sums

    @property
    def flat(self) -> Tensor:
        return self.span.flat

    @property
    def gradient(self) -> Tensor:
        return self.span.gradient

    @property
    def curvature(self) -> Tensor:
        return self.span.curvature

    @property
    def losses(self) -> Tensor:
        return self.span.losses

    @property
    def weight(self) -> Tensor:
        return self.span.weight

    @property
    def parameters(self) -> Mapping[int, Mapping[str, Tensor]]:
        return self.span.parameters

    # Which entries --------------------------------------------------------------------------------------------------

    def _places(self, entries: Tensor) -> Tensor:
        """Where the entries (q,) of all candidates lie in a matrix (K, p) read row by row."""
        return (entries + len(self.start) * torch.arange(len(self.recipes))[:, None]).view(-1)

    def _taken(self, matrix: Tensor, places: Tensor) -> Tensor:  # (K, p), (K * q,) -> (K, q)
        return matrix.view(-1).index_select(0, places).view(len(self.recipes), -1)

    def _here(self, matrix: Tensor | None) -> Tensor | None:
        """What the span's entries of a matrix (K, p) or (K, 1) are."""
        entries = self.span.entries
        if matrix is None or entries is None or matrix.shape[1] == 1:
            return matrix
        return matrix.index_select(1, entries)

    @torch.no_grad()
    def enter(self, batches: Sequence[Mapping[Version, Rows]], team: Team = ALONE) -> None:
        """Before the steps on some batches: choose the parameters that these reach. All others wait, with their moments.

        Nothing to do where all parameters train at every step.
        """
        if self.reach is None:
            return
        self._put_back()
        self.columns = self.reach.columns(batches, team)
        self.span = span = self.reach.span(self.columns, len(self.recipes))
        assert span.entries is not None
        self.places = self._places(span.entries)
        self.near = {name: self._taken(matrix, self.places) for name, matrix in self._matrices().items()}
        span.load(self.near["u"])

    @torch.no_grad()
    def _put_back(self) -> None:
        """Store what the steps since `enter` have made of the span."""
        for name, matrix in self.near.items():
            self._matrices()[name].view(-1).index_copy_(0, self.places, matrix.view(-1))

    def _rate(self) -> Tensor | None:
        return self.optimizer.rate if self.optimizer else None

    def _matrices(self) -> dict[str, Tensor]:
        """What the candidates are at each entry, (K, p) each."""
        out = {"u": self.u}
        if self.optimizer:
            out |= {"mean": self.optimizer.mean, "square": self.optimizer.square}
        return out | ({"average": self.average} if self.forget is not None else {})

    # A step ---------------------------------------------------------------------------------------------------------

    def add(
        self, values: dict[Version, Rows], label: Tensor, weight: Tensor, objective: Objective, draw: Draw,
        *, groups: Mapping[str, Tensor] | None = None, team: Team = ALONE,
    ) -> None:  # fmt: skip
        """Add w * loss and its gradient over these rows, of which there may be none, to `sums`.

        Args:
            groups: the codes (n,) of the columns that the objective's penalties name.
        """
        reached = self.reach.rows(values, self.columns) if self.reach is not None else {}
        self.weight.add_(weight.sum())
        counted = draw.whole[1][1] if draw.whole else weight  # a row of weight 0 may be mixed with one that counts
        if objective.batch is None and not bool((counted > 0).any()):
            return
        folded = self.span.folded
        slopes = folded.slopes(self.parameters, len(self.recipes)) if folded else None
        parts: list[tuple[dict[Version, Tensor], Tensor]] = []
        for rows, (seen, targets) in zip(self.groups, self._seen(values, (label, weight), draw), strict=True):
            seen = {**seen, **{v: x.with_values(_entries(seen[v])) for v, x in reached.items()}}
            margin = self._margins(rows, slopes, seen)
            loss, gradient = _losses(objective, margin.detach(), targets)
            if self.curved and self.folded is not None:
                self._bend(rows, margin.detach(), seen, objective, targets)
            if objective.batch is not None:
                more, slope = _batch_losses(objective.batch, margin.detach(), targets, groups or {}, team)
                loss, gradient = loss + more, gradient + slope
            if len(rows) == len(self.recipes):
                self.losses.add_(loss)
            else:
                self.losses[rows] += loss
            if folded is not None and slopes is not None:
                parts.append(folded.slope_gradients(slopes, seen, gradient))
            else:
                margin.backward(gradient)  # into the clones' gradients, which lie in `gradient`
        if folded is not None and slopes is not None:
            gradients, constant = parts[0]
            if len(parts) > 1:
                gradients = {v: torch.cat([found[v] for found, _ in parts])[self.inverse] for v in gradients}
                constant = torch.cat([found for _, found in parts])[self.inverse]
            folded.back(slopes, gradients, constant, self.span.room)

    @torch.no_grad()
    def _seen(
        self, values: dict[Version, Rows], target: Target, draw: Draw
    ) -> list[tuple[dict[Version, Rows], list[Target]]]:
        """The rows as each group of candidates sees them, and what their losses are summed over."""
        out, drawn = [], []
        for group, rows in enumerate(self.groups):
            recipe = self.recipes[rows[0]]
            if not recipe.augments:
                out.append((values, [target]))
                continue
            given, labels = draw.whole or (values, target)
            inputs = {v: given[v] for v in draw.stats}
            beside = [*self.network.graph.head.lossReads, *(v for v in self.network.flags if v in values)]
            seen, targets = augmented(recipe, inputs, labels, draw.stats, draw.shards, (*draw.key, group))
            if (own := draw.own) is not None:
                seen = {v: taken(x, own) for v, x in seen.items()}
                targets = [(label[own], weight[own]) for label, weight in targets]
            out.append((seen | {v: values[v] for v in beside}, targets))
            drawn.append(out[-1][0])
        if drawn and self.routed:  # all at once: on so few rows a call costs more than they do
            together = {v: below([seen[v] for seen in drawn]) for v in draw.stats}
            self.network.route(together, self.routed)
            for v in self.routed:
                for seen, leaves in zip(drawn, together[v].split(len(target[0])), strict=True):  # type: ignore[union-attr]
                    seen[v] = leaves
        return out

    def _bend(
        self, rows: list[int], margin: Tensor, values: Mapping[Version, Rows], objective: Objective, targets: Sequence[Target]
    ) -> None:  # fmt: skip
        """Add w * second derivative of the loss by the head's leaves, for the candidates that take Newton's steps."""
        assert self.folded is not None
        room = self.span.views(self.curvature)[self.network.graph.head.position]["leaves"]
        for j, k in enumerate(self.curved):
            if k in rows:
                second = _second(objective, margin[rows.index(k)], targets)
                room[j] += self.folded.leaf_curvature(values, second)

    def _margins(self, rows: list[int], slopes: Slopes | None, values: Mapping[Version, Rows]) -> Tensor:
        """(k, n) or (k, n, classes) margins of these candidates; a graph of autograd where the network isn't folded."""
        folded = self.span.folded
        if folded is None or slopes is None:
            return torch.stack([self.clones[k].margin(dict(values)) for k in rows])
        if len(rows) < len(self.recipes):
            slopes = Slopes({v: s[rows] for v, s in slopes.of.items()}, slopes.constant[rows], slopes.tape)
        return folded.margins(slopes, values)

    @torch.no_grad()
    def step(self, scale: float, factor: float = 1.0) -> None:
        """One optimizer step by `sums`; `scale` is the objective's, `factor` the schedule's."""
        self.total += self.losses
        self.total_weight += self.weight
        if self.monotone is not None:
            self._penalise(self.monotone, float(self.weight) / scale)
        span = self.span
        if self.slow or self.curved:
            if span.entries is None:
                self.whole += self.gradient
            else:
                self.whole.index_add_(1, span.entries, self.gradient)
        if self.curved:
            self.bent += self.curvature
        if self.optimizer is None:
            return
        near = self._matrices() if span.entries is None else self.near
        u, gradient = near["u"], span.scratch
        span.scales.by_u(span.start, u, span.flat, self.gradient, gradient)
        gradient *= scale / float(self.weight)
        gradient.addcmul_(u, self.anchor)
        if self.options.gradientClip is not None:
            gradient.mul_(
                (self.options.gradientClip / gradient.norm(dim=1, keepdim=True).clamp_min(1e-300)).clamp_max(1)
            )
        self.optimizer.step(u, gradient, self.base * factor, (near["mean"], near["square"]), self._here(self._rate()))
        span.load(u)
        if self.projects:
            self._project()
        if self.forget is not None:
            near["average"].lerp_(u, self.forget)

    def _penalise(self, monotone: Monotone, factor: float) -> None:
        """Add the penalty's gradient, times a factor, to the sums; every process does the same."""
        assert self.folded is not None
        slopes = self.folded.slopes(self.parameters, len(self.recipes))
        gradients = {v: factor * gradient for v, gradient in monotone.gradients(slopes).items()}
        self.folded.back(slopes, gradients, torch.zeros_like(slopes.constant), self.span.room)

    def _project(self) -> None:
        before = self.flat.clone()
        for clone in self.clones:
            for i in clone.positions:
                clone.module(i).project_()
        moved = (self.flat != before) & (self.scales.unit != 0)  # those go on from where they were put
        self.u[moved] = ((self.flat - self.start) / self.scales.unit)[moved]

    # An epoch -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def end_epoch(self, scale: float) -> list[float]:
        """The steps that are taken once an epoch, and the mean training losses of the epoch; starts the next one."""
        self._put_back()
        self.near = {}
        once = [*self.slow, *self.curved]
        if once:
            flat = self.scales.parameters(self.start, self.u, torch.empty_like(self.u))
            gradient = torch.empty_like(self.u)
            self.scales.by_u(self.start, self.u, flat, self.whole, gradient)
            gradient *= scale / float(self.total_weight)
        for k, optimizer in self.slow.items():
            u = optimizer.param_groups[0]["params"][0]
            u.copy_(self.u[k])
            u.grad = gradient[k] + self.recipes[k].regAnchor * u
            optimizer.step(lambda: 0.0)  # type: ignore[arg-type, return-value]
            self.u[k] = u
        if self.curved:
            bent = self.bent * self.scales.unit**2 * (scale / float(self.total_weight))
            anchor = self.anchor[self.curved]
            step = (gradient[self.curved] + anchor * self.u[self.curved]) / (bent + anchor)
            rates = torch.tensor([self.recipes[k].learningRate for k in self.curved], dtype=torch.float64)[:, None]
            self.u[self.curved] -= torch.where(bent > 0, rates * step, 0.0)
        if once:
            self.whole.zero_()
            self.bent.zero_()
            if self.span.entries is None:
                self.span.load(self.u)
            if self.projects:
                self._project()
            if self.forget is not None:
                self.average[once] = self.u[once]
        means = (self.total / self.total_weight).tolist()
        self.total.zero_()
        self.total_weight.zero_()
        return means

    @torch.no_grad()
    def scores(self, data: Data, split: str, metric: Metric) -> tuple[list[Score], Callable[[int], Tensor]]:
        """Each candidate's score on a split, over all processes, and what gives a copy of the parameters (p,) that the
        k-th was measured with, until the next step.
        """
        every = list(range(len(self.recipes)))
        tallies = [Tally(metric, self.head) for _ in every]
        slopes = None
        if self.reach is None:
            if self.forget is not None:
                self.span.load(self.average)
            for module in (c.module(i) for c in self.clones for i in c.positions) if self.settles else ():
                module.settle_()
            slopes = self.folded.slopes(self.parameters, len(every)) if self.folded else None
        for batch, label, weight, block in data.batches(split):
            values = data.values(batch)
            if self.reach is not None:
                columns = self.reach.columns([values])
                self.span = self.reach.span(columns, len(every))
                assert self.span.folded is not None and self.span.entries is not None
                self.span.load(self._taken(self.average, self._places(self.span.entries)))
                slopes = self.span.folded.slopes(self.parameters, len(every))
                values |= self.reach.rows(values, columns)
            for tally, margin in zip(tallies, self._margins(every, slopes, values), strict=True):
                tally.add(margin, label, weight, block)
        scores = [tally.score(data.team) for tally in tallies]
        if self.reach is not None:
            reach = self.reach
            return scores, lambda k: reach.parameters(self.average[k])
        measured = self.flat.clone()
        if self.forget is not None or self.settles:
            self.span.load(self.u)
        return scores, lambda k: measured[k].clone()

    # Saving and leaving ---------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        self._put_back()
        return {
            "flat": None if self.reach else self.flat, "u": self.u, "average": self.average, "whole": self.whole,
            "total": self.total, "totalWeight": self.total_weight,
            "optimizer": self.optimizer.state() if self.optimizer else None,
            "slow": {k: optimizer.state_dict() for k, optimizer in self.slow.items()}, "bent": self.bent,
        }  # fmt: skip

    @torch.no_grad()
    def load(self, state: Mapping[str, Any]) -> None:
        self.u.copy_(state["u"])
        if self.reach is None:
            self.flat.copy_(state["flat"])
        if self.forget is not None:
            self.average.copy_(state["average"])
        if self.slow or self.curved:
            self.whole.copy_(state["whole"])
            self.bent.copy_(state["bent"])
        self.total.copy_(state["total"])
        self.total_weight.copy_(state["totalWeight"])
        if self.optimizer:
            self.optimizer.load(state["optimizer"])
        for k, optimizer in self.slow.items():
            optimizer.load_state_dict(state["slow"][k])

    def kept(self, rows: list[int]) -> Candidates:
        """These candidates alone, as they are now."""
        recipes = [self.recipes[k] for k in rows]
        kept = Candidates(self.network, recipes, self.options, self.scales, self.folded, self.monotone, self.reach)
        state = self.state()
        for name in ("flat", "u", "average", "whole", "total"):
            state[name] = state[name][rows] if state[name] is not None and len(state[name]) else state[name]
        if state["optimizer"]:
            state["optimizer"] = {n: x[rows] if x.shape == self.u.shape else x for n, x in state["optimizer"].items()}
        state["slow"] = {new: state["slow"][k] for new, k in enumerate(rows) if k in self.slow}
        state["bent"] = state["bent"][[j for j, k in enumerate(self.curved) if k in rows]]
        kept.load(state)
        return kept


def can_reach(
    modules: Iterable[StageModule], recipes: Iterable[Recipe], options: Options, monotone: Monotone | None
) -> bool:  # fmt: skip
    """Whether no step looks at all parameters: a clipped norm, bounds, a penalty and Newton's curvature do."""
    return (
        options.gradientClip is None
        and monotone is None
        and not any(m.has_bounds() or m.settles() for m in modules)
        and not any(r.optimizer == "newton" for r in recipes)
    )


def _entries(x: Rows) -> Tensor:
    assert isinstance(x, SparseRows)
    return x.values


def _losses(objective: Objective, margin: Tensor, targets: Sequence[Target]) -> tuple[Tensor, Tensor]:
    """Sums (k,) of w * loss, and their gradient by the margins (k, n) or (k, n, classes)."""
    if objective.rows is None:
        return margin.new_zeros(len(margin)), torch.zeros_like(margin)
    if objective.exact is None:
        return _by_autograd(objective, margin, targets)
    loss, gradient = _weighted(*objective.exact(margin, targets[0][0]), targets[0][1])
    for label, weight in targets[1:]:
        more, slope = _weighted(*objective.exact(margin, label), weight)
        loss, gradient = loss + more, gradient + slope
    return loss, gradient


def _weighted(loss: Tensor, slope: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return loss @ weight, slope.mul_(weight if slope.ndim == 2 else weight[:, None])


def _by_autograd(objective: Objective, margin: Tensor, targets: Sequence[Target]) -> tuple[Tensor, Tensor]:
    rows, count = objective.rows, len(margin)
    assert rows is not None
    margin = margin.requires_grad_()
    total: Tensor | float = 0.0
    for label, weight in targets:
        if objective.elementwise:
            loss = rows(margin.flatten(0, 1), _repeated(label, count), _repeated(weight, count)).view(count, -1)
        else:
            loss = torch.stack([rows(m, label, weight) for m in margin])
        total = total + loss @ weight
    assert isinstance(total, Tensor)
    [gradient] = torch.autograd.grad(total.sum(), [margin])
    return total.detach(), gradient


def _second(objective: Objective, margin: Tensor, targets: Sequence[Target]) -> Tensor:
    """w * the second derivative of the loss by the margin (n,), 0 where it has none (absolute, quantile)."""
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


def _batch_losses(
    batch: Batch, margin: Tensor, targets: Sequence[Target], groups: Mapping[str, Tensor], team: Team
) -> tuple[Tensor, Tensor]:
    """W * loss of the rows of all processes, this one's share of it (k,), and its gradient by this one's margins."""
    whole = team.gather(margin.transpose(0, 1)).transpose(0, 1).contiguous().requires_grad_()
    first = int(team.gather(torch.tensor([margin.shape[1]]))[: team.rank].sum())
    codes = {name: team.gather(code) for name, code in groups.items()}
    total = torch.zeros(len(margin), dtype=torch.float64)
    for label, weight in targets:
        y, w = team.gather(label), team.gather(weight)
        if bool((w > 0).any()):
            total = total + w.sum() * torch.stack([batch(m, y, w, codes) for m in whole])
    gradient = torch.zeros_like(margin)
    if total.requires_grad:
        [found] = torch.autograd.grad(total.sum(), [whole])
        gradient = found[:, first : first + margin.shape[1]]
    return total.detach() / team.world, gradient


def _repeated(x: Tensor, count: int) -> Tensor:  # (n,) -> (count * n,)
    return x.expand(count, -1).reshape(-1)
