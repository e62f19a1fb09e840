"""Rounds of growth on generated rows: criterion, choice of a part, weights of the mixture."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from sparkdiff.growth import cost_table, parts, rounds
from sparkdiff.growth.growth_options import GrowthSettings
from sparkdiff.growth.growth_steps import without_needless
from sparkdiff.growth.part import Item, ItemResult, ItemTraining, Part, PipelinePlace, ServingWork, Stages
from sparkdiff.growth.parts import units
from sparkdiff.growth.rounds import GrowthResult, Limits, Member
from sparkdiff.growth.row_tensors import Split, Table
from sparkdiff.growth.serving_cost import ServingCostModel
from sparkdiff.objectives import losses, metrics
from sparkdiff.options import Options
from sparkdiff.stages.base import LabelStats
from sparkdiff.tensors.device import torch_threads
from tests.support.growth_tables import HEADS, table_of


class Known(Part):
    """A column, times a factor."""

    kind, name, parameters = "known", "known", 3

    def __init__(self, factor: float, column: int = 1):
        self.factor, self.column = factor, column

    def output(self, split: Split) -> Tensor:
        effect = self.factor * split.values[:, self.column]
        return effect if split.margin.ndim == 1 else torch.stack([0 * effect, effect, -effect], 1)

    def serving_work(self, features: float) -> ServingWork:
        return ServingWork([("Bucketizer", 1)], 1)

    def stages(self, place: PipelinePlace) -> Stages:
        return Stages([], [])


FREE = ServingCostModel(10.0, math.inf, "LinearRegressionModel", 1, 6)


def limits_of(serving: ServingCostModel = FREE, **settings: Any) -> Limits:
    """Limits on one round without a penalty, unless the settings are others."""
    given: dict[str, Any] = {"parts": ("known",), "rounds": 1, "complexity": 0.0, "maxLoss": 0.0, **settings}
    return Limits(GrowthSettings(**given), serving, 0)


LIMITS = limits_of()


@pytest.mark.parametrize("kind", HEADS)
def test_slopes_are_the_derivatives_of_the_loss_of_each_row(kind: str) -> None:
    table, criterion = table_of(kind, 60)
    train, h = table.train, 1e-5
    slope, curve = criterion.slopes(train.margin, train)
    step = torch.zeros_like(train.margin)
    (step if step.ndim == 1 else step[:, 1]).fill_(h)
    up, here, down = (criterion.rows(train.margin + s, train) for s in (step, 0 * step, -step))
    own = (lambda t: t) if step.ndim == 1 else (lambda t: t[:, 1])
    torch.testing.assert_close(own(slope), (up - down) / (2 * h), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(own(curve), (up - 2 * here + down) / h**2, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", HEADS)
def test_mixture_weights_minimise_the_training_loss(kind: str) -> None:
    table, criterion = table_of(kind, 4000, planted=lambda c: 0.6 * c["y"])
    members = [Member(Known(2.0), 1.0, 1), Member(Known(-1.0, 0), 1.0, 2)]
    found, mixed = rounds.fit_weights(members, table, criterion, LIMITS)
    assert all(m.weight >= 0 for m in found)
    assert found[1].weight < 0.12, "a part that takes off what the margin has already gets no weight"
    assert found[0].weight == pytest.approx(0.3, abs=0.05)
    expected = table.train.margin + sum(m.weight * m.part.output(table.train) for m in found)
    torch.testing.assert_close(mixed.train.margin, expected, rtol=1e-5, atol=1e-5)
    best = float(criterion.loss(mixed.train.margin, table.train))
    for weight in (0.9, 1.1):
        other = expected + (weight - 1) * found[0].weight * Known(2.0).output(table.train)
        assert float(criterion.loss(other, table.train)) > best


def test_a_part_beside_an_overfitted_model_keeps_its_weight() -> None:
    """No slope is left on training rows: the mixture gives a further part no weight, but validation rows show that it gains."""
    table, criterion = table_of("linear", 900, planted=lambda c: 0.6 * c["y"])
    known = dataclasses.replace(table, train=table.train.at(table.train.label))
    part = Known(0.6)
    before = criterion.score(known.validation.margin, known.validation)
    after = criterion.score(known.validation.margin + part.output(known.validation), known.validation)
    gains = (before.blocks - after.blocks)[None]
    one = ItemResult(Item("known", "known", 1, 1.0, 0), part, 1, after.mean, 0.0, gains, 0.0)
    limits = limits_of(complexity=0.1)
    [mixed], _ = rounds.fit_weights([Member(part, 1.0, 1)], known, criterion, limits)
    assert mixed.weight < 0.01
    with pytest.MonkeyPatch.context() as m:
        m.setattr(parts, "propose", lambda *args: [one.item])
        grown = rounds.grow(known, criterion, limits, lambda *args: [one], lambda tried: None)
    assert [m.weight for m in grown.members] == [1.0]
    torch.testing.assert_close(grown.table.train.margin, known.train.margin + part.output(known.train))
    assert criterion.score(grown.table.validation.margin, known.validation).mean == after.mean


def test_a_penalty_makes_weights_smaller() -> None:
    table, criterion = table_of("poisson", 4000, planted=lambda c: 0.6 * c["y"])
    members = [Member(Known(1.0), 1.0, 1)]
    [free], [priced] = (rounds.fit_weights(members, table, criterion, limits_of(complexity=c))[0] for c in (0.0, 3.0))
    assert 0 < priced.weight < 0.97 * free.weight


def test_a_loss_without_curvature_has_newton_steps_of_one_unit() -> None:
    table, criterion = table_of("linear", 60)
    stats = LabelStats(0.0, 7.0, -9.0, 9.0, torch.empty(0, dtype=torch.int64))
    objective = losses.resolve("absolute", {}, criterion.head, ("prediction",), stats)
    flat = dataclasses.replace(criterion, objective=objective, unit=7.0)
    slope, curve = flat.slopes(table.train.margin, table.train)
    torch.testing.assert_close((slope / curve).abs(), torch.full_like(slope, 7.0))


BEFORE = 2.0


def found(gains: list[float], parameters: int, epoch: int = 1) -> ItemResult:
    part = Known(1.0)
    part.parameters = parameters  # type: ignore[misc]
    blocks = torch.tensor([gains] * epoch, dtype=torch.float64)
    value = BEFORE - sum(gains) / len(gains)
    return ItemResult(Item("known", str(parameters), epoch, 1.0, 0), part, epoch, value, 0.0, blocks, 0.0)


def test_the_simplest_of_those_that_gain_as_much_joins() -> None:
    best, as_good, worse = (
        found([1.0, 1.2, 0.9, 1.1], 50),
        found([1.2, 0.9, 1.1, 0.9], 20),
        found([0.8, 1.0, 0.7, 0.9], 5),
    )
    assert rounds.simplest([best, as_good, worse], [0.1, 0.2, 0.3], BEFORE) == 1, "0.2 less in every block is no chance"
    assert rounds.simplest([best, as_good, worse], [0.1, math.inf, 0.3], BEFORE) == 0, "it can't join"
    assert rounds.simplest([best, worse], [math.inf, math.inf], BEFORE) == 0


def test_a_simpler_part_within_1_percent_of_the_gain_joins() -> None:
    best = found([1.0, 1.2, 0.9, 1.1], 50)
    nearly = found([gain - 0.009 for gain in (1.0, 1.2, 0.9, 1.1)], 20)
    assert rounds.simplest([best, nearly], [0.1, 0.2], BEFORE) == 1
    assert rounds.simplest([best, nearly], [0.1, 0.2], BEFORE - 0.5) == 0, "of a smaller gain, 0.009 is more"


def test_a_cross_is_named_before_units_that_learn_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    effect = torch.randn(6, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    table, criterion = table_of("poisson", 2400, planted=lambda c: effect[c["a"].long(), c["b"].long()])
    original = criterion.score(table.validation.margin, table.validation)

    def run(number: int, items: Sequence[Item], at: Table, blocks: Tensor) -> list[ItemResult]:
        done = []
        for item in items:
            course = ItemTraining(
                item, parts.trainer(item, at), criterion.score(at.validation.margin, at.validation).mean
            )
            while not course.is_done:
                course.step(at, criterion, blocks)
            done.append(course.result())
        return done

    monkeypatch.setattr(units, "SIZES", units.SIZES[1:2])
    with torch_threads(1):
        grown = rounds.grow(
            table, criterion, limits_of(parts=("units", "crosses"), complexity=0.1), run, lambda tried: None
        )
    assert grown.members[0].part.name.startswith("a x b")
    assert criterion.score(grown.table.validation.margin, table.validation).mean < original.mean


def test_a_small_gain_that_is_proven_is_not_dropped() -> None:
    """Less than maxLoss of the metric, but all that there is to gain."""
    table, criterion = table_of("linear", 30_000, planted=lambda c: 0.02 * c["y"] + 3)
    start = table.at(table.train.margin + 3, table.validation.margin + 3)
    useful, useless = Member(Known(0.02), 1.0, 1), Member(Known(1e-5, 0), 1.0, 2)
    members, mixed = rounds.fit_weights([useful, useless], start, criterion, LIMITS)
    grown = GrowthResult(members, mixed, (), "")
    kept, gone = without_needless(grown, start, criterion, limits_of(maxLoss=0.005), Options())
    assert [m.part for m in kept.members] == [useful.part]
    assert [m.part for m in gone] == [useless.part]
    timed = without_needless(grown, start, criterion, limits_of(maxLoss=0.005), Options(timeCol="t"))
    assert timed[1] == ()


def test_a_limit_holds_for_the_whole_pipeline() -> None:
    """Each part alone is cheap: what joins it, and the entries of the features, count too."""
    table, criterion = table_of("poisson", 600, planted=lambda c: 0.6 * c["y"])
    blocks = criterion.score(table.validation.margin, table.validation).blocks
    one = dataclasses.replace(found([1.0], 3), value=0.1, gains=blocks[None])

    def joined(limit: float) -> GrowthResult:
        limits = limits_of(dataclasses.replace(FREE, limit=limit), rounds=3)
        with pytest.MonkeyPatch.context() as m:
            m.setattr(parts, "propose", lambda *args: [one.item])
            return rounds.grow(table, criterion, limits, lambda *args: [one], lambda tried: None)

    part = Known(1.0)
    apart, whole = FREE.before + FREE.share(part), FREE.cost([part])
    assert whole == pytest.approx(apart + cost_table.of("VectorAssembler", 6) + cost_table.of("VectorSizeHint", 6))
    assert not joined(limit=(apart + whole) / 2).members
    [tried] = joined(limit=whole - 1e-9).tried
    assert tried.why.startswith("serving would cost")
    assert len(joined(limit=whole).members) == 1
    assert len(joined(limit=FREE.cost([part, part])).members) == 2


def test_rounds_end_when_time_is_over_with_what_has_joined() -> None:
    table, criterion = table_of("poisson", 600, planted=lambda c: 0.6 * c["y"])
    original = criterion.score(table.validation.margin, table.validation)
    one = dataclasses.replace(found([1.0], 3), value=0.1, gains=original.blocks[None])
    late = ItemResult.late(one.item, original.mean, original.blocks)

    def grown(*each: list[ItemResult]) -> GrowthResult:
        done = iter(each)
        with pytest.MonkeyPatch.context() as m:
            m.setattr(parts, "propose", lambda *args: [one.item] * 2)
            limits = limits_of(rounds=3)
            return rounds.grow(table, criterion, limits, lambda *args: next(done), lambda tried: None)

    half = grown([one, late])
    assert half.late and "before 1 of its 2 parts were trained" in half.stopped
    assert len(half.members) == 1
    assert [t.why for t in half.tried] == ["", "maxSeconds was over"]
    whole = grown([one, one], [late, late])
    assert whole.late and whole.stopped == "maxSeconds was over after round 1"
    assert len(whole.tried) == 2 and len(whole.members) == 1
    none = grown([late, late])
    assert none.late and not none.members and not none.tried


def test_beside_a_model_that_fits_exactly_nothing_joins() -> None:
    """Squares of what rounding left are gains, too, and larger than chance."""
    table, criterion = table_of("linear", 900)

    def exact(split: Split) -> Split:
        return dataclasses.replace(split, label=split.margin + 1e-15 * torch.sin(split.margin))

    table = dataclasses.replace(table, train=exact(table.train), validation=exact(table.validation))
    before = criterion.score(table.validation.margin, table.validation)
    for name in ("curve of x", "trees of 4 leaves"):
        wanted = next(i for i in parts.propose(["shapes", "trees"], table, criterion, 0) if i.name == name)
        course = ItemTraining(wanted, parts.trainer(wanted, table), before.mean)
        while not course.is_done:
            course.step(table, criterion, before.blocks)
        one = course.result()
        assert one.part is not None and one.value < 0.9 * before.mean
        with pytest.MonkeyPatch.context() as m:
            m.setattr(parts, "propose", lambda *args, one=one: [one.item])
            limits = limits_of(complexity=0.1)
            grown = rounds.grow(table, criterion, limits, lambda *args, one=one: [one], lambda tried: None)
        assert [t.why for t in grown.tried] == ["what it adds is no more than what rounding left"]
        assert not grown.members


@pytest.mark.parametrize("metric", ["r2", "likelihood"])
def test_the_penalty_holds_where_the_metric_is_near_zero(metric: str) -> None:
    """Of r2 where the original predicts the mean, and of a loss that can be negative."""
    table, criterion = table_of("linear", 900)
    validation = table.validation
    if metric == "r2":
        named = Options.of({"metric": "r2"})
        stats = LabelStats(0.0, 1.0, -9.0, 9.0, torch.empty(0, dtype=torch.int64))
        own = metrics.resolve(named, criterion.objective, criterion.head, ("prediction",), stats)
        validation = validation.at(torch.full_like(validation.margin, float(validation.label.mean())))
        criterion = dataclasses.replace(criterion, metric=own)
    else:
        mean = float(criterion.loss(validation.margin, validation))
        loss = lambda margin, y, w: (margin - y).square() - mean  # noqa: E731
        objective = dataclasses.replace(criterion.objective, rows=loss)
        metric_rows = dataclasses.replace(criterion.metric, rows=loss)
        criterion = dataclasses.replace(criterion, objective=objective, metric=metric_rows)
        assert criterion.loss_size(validation.margin, validation) > mean / 3
    table = dataclasses.replace(table, validation=validation)
    before = criterion.score(validation.margin, validation)
    assert abs(before.mean) < 0.01
    assert criterion.size(validation.margin, validation) > 0.1
    tiny = dataclasses.replace(found([1.0], 500), value=before.mean - 1e-4, gains=before.blocks[None])
    with pytest.MonkeyPatch.context() as m:
        m.setattr(parts, "propose", lambda *args: [tiny.item])
        limits = limits_of(complexity=0.1)
        grown = rounds.grow(table, criterion, limits, lambda *args: [tiny], lambda tried: None)
    assert [t.why for t in grown.tried] == ["its gain is less than its penalty"]


def one_round(gains: Tensor, value: float, maxLoss: float, rounds_: int = 3) -> tuple[GrowthResult, list[int]]:
    """Rounds in which one part gains this, and the numbers of those that were begun."""
    table, criterion = table_of("poisson", 600, planted=lambda c: 0.6 * c["y"])
    one = dataclasses.replace(found([1.0], 3), value=value, gains=gains[None])
    begun = list[int]()

    def run(number: int, *_: object) -> list[ItemResult]:
        begun.append(number)
        return [one]

    with pytest.MonkeyPatch.context() as m:
        m.setattr(parts, "propose", lambda *args: [one.item])
        limits = limits_of(rounds=rounds_, maxLoss=maxLoss)
        return rounds.grow(table, criterion, limits, run, lambda tried: None), begun


def test_a_part_must_gain_more_than_its_error_and_max_loss() -> None:
    table, criterion = table_of("poisson", 600, planted=lambda c: 0.6 * c["y"])
    before = criterion.score(table.validation.margin, table.validation)
    random = torch.Generator().manual_seed(0)
    noise = before.weights * torch.randn(len(before.weights), generator=random, dtype=torch.float64)
    noise -= noise.sum() / before.weights.sum() * before.weights
    error = float(noise.norm() / before.weights.sum())

    def of(gain: float, maxLoss: float = 0.0) -> tuple[GrowthResult, list[int]]:
        return one_round(noise + gain * before.weights, before.mean - gain, maxLoss)

    within, begun = of(0.9 * error)
    assert [t.why for t in within.tried] == ["its gain is no larger than its standard error"]
    assert not within.members and begun == [1], "growth ends with the first round in which no part joins"
    assert "nothing that round 1 tried gains enough" in within.stopped
    assert len(of(1.1 * error)[0].members) >= 1
    share = 1.1 * error / abs(before.mean)
    small, _ = of(1.1 * error, maxLoss=1.01 * share)
    assert small.tried[0].why.endswith("of the original's metric") and not small.members
    assert len(of(1.1 * error, maxLoss=0.99 * share)[0].members) >= 1
