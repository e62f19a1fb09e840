"""A FineTuner sets Params that are not its own on copies of its pipeline's stages. Without Spark: the stages are Python."""

from typing import Any

import pytest
from pyspark.ml import Estimator, Pipeline, PipelineModel, Transformer
from pyspark.ml.param import Param, Params

from sparkdiff import FineTuner
from sparkdiff.fine_tuning.task import FitResults


class _Ridge(Params):
    regParam: Param[Any] = Param(Params._dummy(), "regParam", "strength")  # type: ignore[no-untyped-call]


class Ridge(Estimator[Any], _Ridge):
    def _fit(self, dataset: Any) -> Any:
        raise NotImplementedError


class RidgeModel(Transformer, _Ridge):
    def _transform(self, dataset: Any) -> Any:
        raise NotImplementedError


FOREIGN = {Ridge().regParam: 3.0}
"""A Param of a stage in no pipeline: ignored, as by Spark's Pipeline."""


@pytest.fixture(params=[Pipeline, PipelineModel])
def held(request: pytest.FixtureRequest) -> Any:
    if request.param is Pipeline:
        return Pipeline(stages=[Ridge(), Ridge()])
    return PipelineModel([RidgeModel(), PipelineModel([RidgeModel()])])


def leaves(pipeline: Any) -> list[Any]:
    stages = pipeline.getStages() if isinstance(pipeline, Pipeline) else pipeline.stages
    return [leaf for s in stages for leaf in (leaves(s) if isinstance(s, PipelineModel) else [s])]


def test_params_of_stages_are_set_on_copies(held: Any) -> None:
    tuner, (first, last) = FineTuner(pipeline=held), leaves(held)
    copied = tuner.copy({last.regParam: 100.0, tuner.maxEpochs: 3, **FOREIGN})
    assert copied.getMaxEpochs() == 3
    assert copied.getPipeline().uid == held.uid
    one, other = leaves(copied.getPipeline())
    assert (other.getOrDefault("regParam"), other.uid) == (100.0, last.uid)
    assert not one.isSet("regParam")
    assert tuner.getPipeline() is held
    assert not first.isSet("regParam") and not last.isSet("regParam")
    assert tuner.copy({tuner.maxEpochs: 3}).getPipeline() is held


def test_equal_params_share_one_copy_within_a_fitMultiple(held: Any) -> None:
    tuner, last = FineTuner(pipeline=held), leaves(held)[1]
    tuner._shared = FitResults()

    def given(value: Any) -> Any:
        return tuner.copy({last.regParam: value}).getPipeline()

    assert given(1.0) is given(1.0)
    assert given(1.0) is not given(2.0)
    assert given([1.0]) is not given([1.0])  # can't be a key
    assert [leaves(given(v))[1].getOrDefault("regParam") for v in (1.0, 2.0, [1.0])] == [1.0, 2.0, [1.0]]


def test_a_foreign_param_keeps_the_fitted_pipeline_object() -> None:
    fitted = PipelineModel([RidgeModel()])
    assert FineTuner(pipeline=fitted).copy(FOREIGN).getPipeline() is fitted
