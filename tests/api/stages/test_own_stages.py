"""docs/own_stages.md does what it says: its code, as it stands there."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.regression import LinearRegression
from pyspark.sql import DataFrame, SparkSession

import sparkdiff
from sparkdiff.stages.base import REGISTRY
from sparkdiff.testing import LawBroken, check_stage

PAGE = Path(__file__).parents[3] / "docs" / "own_stages.md"
STAGE, TRANSLATION, CHECK = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page's shop.py, imported, and its translation registered."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "shop.py").write_text(STAGE, encoding="utf-8")
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module("shop")
        exec(TRANSLATION, {"__name__": "translations"})
        yield module
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("shop", None)
        REGISTRY.pop("shop.Saturation", None)


@pytest.fixture(scope="module")
def spent(spark: SparkSession) -> DataFrame:
    """Sales that saturate at another spend than the pipeline's stage believes."""
    random = np.random.default_rng(0)
    spend, price = random.uniform(0, 5, 1500), random.normal(size=1500)
    # Rounded, as the last bits of tanh depend on the processor, and the split of a row on its bits.
    sales = np.round(3 * np.tanh(1.2 * spend) - price + 0.3 * random.normal(size=1500), 9)
    names = ["spend", "price", "sales"]
    return (
        spark.createDataFrame([tuple(map(float, r)) for r in zip(spend, price, sales, strict=True)], names)
        .coalesce(2)
        .cache()
    )


def test_the_translation_is_short() -> None:
    assert len([line for line in (TRANSLATION + CHECK).splitlines() if line.strip()]) <= 30


def test_the_check_passes(shop: Any, spark: SparkSession) -> None:
    exec(CHECK, {"spark": spark})


def test_the_check_would_see_a_mistake(shop: Any, spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REGISTRY["shop.Saturation"], "forward", lambda self, x: self.steepness * x)
    with pytest.raises(LawBroken, match="breaks parity: 'effect'"):
        exec(CHECK, {"spark": spark})


def test_a_setting_that_was_a_default_is_set_where_it_changed(shop: Any, spark: SparkSession) -> None:
    stage = shop.Saturation()
    stage._setDefault(steepness=0.5)
    stage = stage.copy({stage.inputCol: "x", stage.outputCol: "y"})
    check_stage(stage, spark.createDataFrame([(0.5,), (-2.0,)], "x double"))
    network = sparkdiff.translate(stage)
    assert sparkdiff.write_back(stage, network) is stage
    network.module(0).steepness.data.fill_(2.0)
    assert sparkdiff.write_back(stage, network).getOrDefault("steepness") == 2.0
    assert not stage.isSet("steepness")


def test_it_trains(shop: Any, spent: DataFrame, tmp_path: Path) -> None:
    saturation = shop.Saturation()
    saturation = saturation.copy(
        {saturation.inputCol: "spend", saturation.outputCol: "effect", saturation.steepness: 0.4}
    )
    model = Pipeline(
        stages=[
            saturation,
            VectorAssembler(inputCols=["effect", "price"], outputCol="features"),
            LinearRegression(labelCol="sales"),
        ]
    ).fit(spent)
    assert [(s.stageClass, s.trainable) for s in sparkdiff.plan(model).stages] == [
        ("Saturation", True),
        ("VectorAssembler", False),
        ("LinearRegressionModel", True),
    ]
    tuned = sparkdiff.FineTuner(
        pipeline=model, maxEpochs=25, learningRate=0.02, cacheDir=str(tmp_path / "cache"), rowsAreNew=True
    ).fit(spent)
    assert tuned.summary.decision == "tuned"
    assert tuned.summary.gain > 0.2
    assert abs(tuned.pipelineModel.stages[0].getOrDefault("steepness") - 1.2) < 0.4
    assert model.stages[0].getOrDefault("steepness") == 0.4
    tuned.pipelineModel.write().save(f"file://{tmp_path}/model")
    loaded = PipelineModel.load(f"file://{tmp_path}/model")
    assert sparkdiff.verify(loaded, spent).ok
    assert loaded.stages[0].getOrDefault("steepness") == tuned.pipelineModel.stages[0].getOrDefault("steepness")
