"""Penalties on real pipelines: groups that are treated alike, slopes that keep their sign, and wishes that can't be had."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.regression import GeneralizedLinearRegression
from pyspark.sql import DataFrame

from sparkdiff import InputError, translate
from tests.support.small_data import pipeline, predictions, tune

pytestmark = pytest.mark.slow
FREE: dict[str, Any] = {"maxEpochs": 12, "guard": 1.0}


def gap(model: Any, df: DataFrame) -> float:
    """Variance between the hours' mean predictions, over that between rows."""
    shown = model.transform(df).select("prediction", "hour").toPandas()
    return float(shown.groupby("hour")["prediction"].mean().var() / shown["prediction"].var())


def test_a_parity_gap_shrinks_with_its_strength(df: DataFrame, model: PipelineModel, shared: Path) -> None:
    given = FREE | {"guardCols": ["hour"]}
    gaps = [gap(tune(model, df, shared, **given).pipelineModel, df)]
    for strength in (1.0, 30.0):
        found = tune(model, df, shared, **given, penalties={"parityGap": {"hour": strength}})
        gaps.append(gap(found.pipelineModel, df))
    assert gaps[0] > gaps[1] > 2 * gaps[2]


def test_predictions_stop_to_fall_with_a_feature(df: DataFrame, model: PipelineModel, shared: Path) -> None:
    """Riders fall with `noise` in these data, and rise with `wind`."""

    def slopes(tuned: Any) -> dict[str, float]:
        row = df.limit(1).toPandas()
        out = {}
        for name in ("wind", "noise"):
            moved = row.loc[[0, 0]].reset_index(drop=True)
            moved.loc[1, name] += 1.0
            one, other = predictions(tuned, df.sparkSession.createDataFrame(moved), name)[:, 0]
            out[name] = float(np.log(other / one))
        return out

    free = slopes(tune(model, df, shared, **FREE).pipelineModel)
    assert free["noise"] < -0.1
    assert free["wind"] > 0.1
    wish = {"monotone": {"noise": 100.0, "wind": 100.0}}
    held = tune(model, df, shared, **FREE, penalties=wish)
    found = slopes(held.pipelineModel)
    assert found["noise"] > -0.02
    assert found["wind"] > 0.1
    weak = tune(model, df, shared, **FREE, penalties={"monotone": {"noise": 1e-6}}).summary
    assert any("still fall with 'noise'" in w and "penalties.monotone.noise, now 1e-06" in w for w in weak.warnings)


@pytest.mark.parametrize(
    ("penalties", "sentence"),
    [
        ({"monotone": {"nois": 1}}, r"penalties.monotone: 'nois' is not an input. Did you mean 'noise'"),
        ({"parityGap": {"hour": 1}}, r"names \['hour'\], but only the columns of guardCols are kept"),
    ],
)
def test_wrong_names(df: DataFrame, model: PipelineModel, shared: Path, penalties: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        tune(model, df, shared, penalties=penalties)


def test_predictors_without_a_slope_of_one_sign(df: DataFrame, shared: Path) -> None:
    softmax = pipeline(df, LogisticRegression(featuresCol="x", labelCol="kind", family="multinomial"))
    with pytest.raises(InputError, match="has a margin for each class"):
        tune(softmax, df, shared, penalties={"monotone": {"wind": 1}})
    inverse = pipeline(df, GeneralizedLinearRegression(featuresCol="x", labelCol="delay", family="gamma"))
    assert translate(inverse).head.link == "inverse"
    with pytest.raises(InputError, match="link whose mean increases"):
        tune(inverse, df, shared, penalties={"monotone": {"wind": 1}})
