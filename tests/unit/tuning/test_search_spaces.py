"""Spaces and alternatives without Spark: what a trial decides, under which names, and what is refused. The stages are Python."""

from typing import Any

import numpy as np
import pytest
from pyspark.ml import Estimator, Pipeline
from pyspark.ml.param import Param, Params, TypeConverters

from sparkdiff import InputError, alternatives, choice, integer, loguniform, uniform
from sparkdiff.search.alternatives import places, with_choices
from sparkdiff.search.distributions import as_distribution, from_dict
from sparkdiff.search.search_space import SearchSpace, value_of


def param(name: str, converter: Any = TypeConverters.identity) -> Any:
    return Param(Params._dummy(), name, "", converter)  # type: ignore[no-untyped-call]


class Scale(Estimator[Any]):
    """From a column to a column, times a factor."""

    inputCol, outputCol, factor = param("inputCol"), param("outputCol"), param("factor", TypeConverters.toFloat)

    def __init__(self, read: str = "x", write: str = "s"):
        super().__init__()
        self._set(inputCol=read, outputCol=write)

    def _fit(self, dataset: Any) -> Any:
        raise NotImplementedError


class Shift(Scale):
    pass


class Head(Estimator[Any]):
    featuresCol, predictionCol, size = param("featuresCol"), param("predictionCol"), param("size", TypeConverters.toInt)
    inputCols = param("inputCols")

    def __init__(self, read: str = "s"):
        super().__init__()
        self._set(featuresCol=read, predictionCol="prediction")

    def _fit(self, dataset: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uniform(2, 1), r"uniform\(2, 1\): low is above high"),
        (lambda: uniform(0, float("inf")), "inf is no finite number"),
        (lambda: uniform(0, 10**400), "0 is no finite number"),
        (lambda: loguniform(0, 1), "low must be above 0, because 0 has no logarithm"),
        (lambda: loguniform("a", 1), "'a' is no finite number"),
        (lambda: integer(1.5, 3), "1.5 is no whole number"),  # type: ignore[arg-type]
        (lambda: integer(0, 3, log=True), "low must be at least 1"),
        (lambda: integer(1, float("inf")), "inf is no whole number"),  # type: ignore[arg-type]
        (lambda: integer(float("nan"), 3), "nan is no whole number"),  # type: ignore[arg-type]
        (lambda: choice(), r"choice\(\) has no values"),
        (lambda: as_distribution("k of PCA_1", 3), "space gives k of PCA_1 3: give sparkdiff.uniform"),
        (lambda: alternatives(Scale()), "takes two stages or more, got 1"),
        (lambda: alternatives(Scale(), "pca"), "str is not a pipeline stage"),
        (lambda: alternatives(Scale(), None, None), "None twice"),
        (lambda: alternatives(Scale(), Scale(write="t")), "Scale writes 's', Scale writes 't'; set the same outputCol"),
        (lambda: alternatives(Scale(), Shift("y"), None), "Scale reads 'x', Shift reads 'y'"),
        (lambda: alternatives(Head(), Head(), None), "can't be told what later stages read"),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_written(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_values_of_numpy_are_values() -> None:
    assert choice(*np.arange(1, 3), np.float64(0.5)) == choice(1, 2, 0.5)


def test_distributions_are_saved_and_told() -> None:
    given = [uniform(0, 1), loguniform(1e-5, 10), integer(2, 40), choice("auto", None, 3), choice([1, 2], [3])]
    assert [from_dict(d.toDict()) for d in given] == given
    assert [str(d) for d in given[:4]] == [
        "uniform(0, 1)",
        "loguniform(1e-05, 10)",
        "integer(2, 40)",
        "choice('auto', None, 3)",
    ]
    assert given[4].names() == ["0: [1, 2]", "1: [3]"]  # type: ignore[attr-defined]
    assert choice(1, True).names() == ["0: 1", "1: True"]  # Python takes them for equal
    assert value_of(choice(1, True), "1: True") is True


def test_only_chosen_stages_of_alternatives_are_asked_about() -> None:
    scale, shift, head = Scale(), Shift(), Head()
    pipeline = Pipeline(stages=[alternatives(scale, shift, None), head])
    space = {head.size: [1, 2], scale.factor: uniform(0, 1), shift.factor: choice(1.0, 2.0)}
    space = SearchSpace.of(pipeline, space)
    assert [q.name for q in space.dimensions] == ["stage of s", "Head.size", "Scale.factor", "Shift.factor"]
    first = {"stage of s": "Scale", "Head.size": 2, "Scale.factor": 0.5}
    assert space.sample(lambda q: first[q.name]) == first
    assert "Scale.factor" not in space.sample(lambda q: {**first, "stage of s": "None"}[q.name])
    estimator, params = space.setting(first)
    assert [s.uid for s in estimator.getStages()] == [scale.uid, head.uid]
    assert params == {head.size: 2, scale.factor: 0.5}
    empty, _ = space.setting({"stage of s": "None", "Head.size": 1})
    assert [s.uid for s in empty.getStages()] == [head.uid]
    assert empty.getStages()[0].getOrDefault("featuresCol") == "x"  # what the others would have read
    assert head.getOrDefault("featuresCol") == "s" and len(places(pipeline)) == 1 and not places(empty)


def test_each_alternative_asks_about_a_stage_they_share() -> None:
    """With one place in the other, which a later alternative holds, too."""
    scale, shift, head = Scale(write="a"), Shift("a"), Head()
    inner = alternatives(Scale("a"), shift)
    pipeline = Pipeline(
        stages=[
            alternatives(Pipeline(stages=[scale, inner]), Pipeline(stages=[scale, shift]), Scale()),
            alternatives(Pipeline(stages=[inner]), Shift()),
            head,
        ]
    )
    space = SearchSpace.of(pipeline, {scale.factor: [1.0, 2.0], shift.factor: [1.0, 2.0]})
    first, second, third = (q.name for q in space.dimensions[:3])
    assert [q.place for q in space.dimensions[:3]] == [*dict.fromkeys(q.place for q in space.dimensions[:3])]
    assert third.startswith("stage of s") and space.dimensions[2].place == inner.uid
    grid = space.grid()
    for found in grid:
        assert ("Scale1.factor" in found) == (found[first] != "Scale")
        assert (third in found) == (found[first] == "Pipeline 0" or found[second] == "Pipeline")
        assert ("Shift1.factor" in found) == (found.get(third) == "Shift" or found[first] == "Pipeline 1")
    assert len(grid) == len({str(found) for found in grid})


def test_a_grid_lists_each_setting_once() -> None:
    scale, shift, head = Scale(), Shift(), Head()
    space = {head.size: integer(1, 2), shift.factor: choice(1.0, 2.0, 3.0)}
    grid = SearchSpace.of(Pipeline(stages=[alternatives(scale, shift), head]), space).grid()
    assert len(grid) == 2 + 2 * 3 == len({str(a) for a in grid})
    assert grid[0] == {"stage of s": "Scale", "Head.size": 1}
    with pytest.raises(
        InputError, match=r"sampler='grid' needs a list of values, but space gives Scale.factor uniform"
    ):
        SearchSpace.of(scale, {scale.factor: uniform(0, 1)}).grid()


def test_columns_are_renamed_through_empty_places_in_turn() -> None:
    one, two, head = Scale("x", "s"), Shift("s", "t"), Head("t")
    head._set(inputCols=["a", "t"])
    pipeline = Pipeline(stages=[alternatives(one, None), Pipeline(stages=[alternatives(two, None)]), head])
    first, second = places(pipeline)
    both = with_choices(pipeline, {first.uid: 1, second.uid: 1})
    last = both.getStages()[-1]
    assert (last.getOrDefault("featuresCol"), last.getOrDefault("inputCols")) == ("x", ["a", "x"])
    assert [s.uid for s in with_choices(pipeline, {}).getStages()[1].getStages()] == [two.uid]
    assert with_choices(pipeline, {}).uid == pipeline.uid
    inner = with_choices(pipeline, {first.uid: 1}).getStages()[0].getStages()[0]
    assert inner.getOrDefault("inputCol") == "x"


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            {Head().size: [1]},
            r"space sets size of Head_\w+, which is no stage of the estimator; the Head of the estimator is",
        ),
        ({}, "space is empty and the estimator has no alternatives"),
    ],
)
def test_a_space_that_fits_no_stage_is_refused(space: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SearchSpace.of(Pipeline(stages=[Scale(), Head()]), space)


def test_a_value_that_a_param_refuses_is_refused_at_either_end() -> None:
    head = Head()
    with pytest.raises(InputError, match=r"space gives size of Head_\w+ the value 1.5"):
        SearchSpace.of(head, {head.size: uniform(1, 1.5)})
    with pytest.raises(InputError, match=r"space gives size of Head_\w+ the value 2.8"):
        SearchSpace.of(head, {head.size: loguniform(1, 4)})
