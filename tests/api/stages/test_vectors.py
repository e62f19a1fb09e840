"""Scalers, expansions, selectors and weights of words, trained through the public interface and written back."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import (
    IDF,
    ElementwiseProduct,
    HashingTF,
    MaxAbsScaler,
    Normalizer,
    PolynomialExpansion,
    RobustScaler,
    Tokenizer,
    UnivariateFeatureSelector,
    VectorAssembler,
    VectorSizeHint,
    VectorSlicer,
)
from pyspark.ml.linalg import Vectors
from pyspark.ml.regression import GeneralizedLinearRegression
from pyspark.sql import DataFrame, SparkSession

import sparkdiff
from sparkdiff import FineTunerModel
from tests.support.small_data import NUMBERS, tune


def trained(model: Any) -> list[str]:
    return [s.stageClass for s in sparkdiff.plan(model).stages if s.trainable]


def served(tuned: FineTunerModel, original: PipelineModel, df: DataFrame, folder: Path) -> PipelineModel:
    """The result saved and loaded: plain, in agreement with the network, of the same stages, better on validation rows."""
    assert tuned.summary.decision == "tuned"
    assert tuned.summary.parity["after"]["ok"]
    tuned.pipelineModel.write().save(f"file://{folder}/model")
    loaded = PipelineModel.load(f"file://{folder}/model")
    assert [s.uid for s in loaded.stages] == [s.uid for s in original.stages]
    assert sparkdiff.verify(loaded, df, network=sparkdiff.translate(tuned.pipelineModel)).ok
    assert not sparkdiff.verify(original, df, network=sparkdiff.translate(tuned.pipelineModel)).ok
    return loaded


def test_numbers(df: DataFrame, shared: Path, tmp_path: Path) -> None:
    """All but the selection and the expansion trains; the expansion isn't affine, so candidates are evaluated one by one."""
    selector = UnivariateFeatureSelector(featuresCol="monomials", labelCol="riders", outputCol="selected")
    model = Pipeline(
        stages=[
            VectorAssembler(inputCols=NUMBERS, outputCol="v"),
            VectorSizeHint(inputCol="v", size=4),
            RobustScaler(inputCol="v", outputCol="robust", withCentering=True),
            PolynomialExpansion(inputCol="robust", outputCol="monomials"),
            selector.setFeatureType("continuous").setLabelType("continuous").setSelectionThreshold(7),
            MaxAbsScaler(inputCol="selected", outputCol="small"),
            ElementwiseProduct(inputCol="small", outputCol="weighed", scalingVec=Vectors.dense(np.linspace(1, 2, 7))),
            GeneralizedLinearRegression(featuresCol="weighed", labelCol="riders", family="poisson", regParam=5.0),
        ]
    ).fit(df)
    assert trained(model) == [
        "RobustScalerModel",
        "MaxAbsScalerModel",
        "ElementwiseProduct",
        "GeneralizedLinearRegressionModel",
    ]
    assert sparkdiff.verify(model, df).ok
    tuned = tune(model, df, shared)
    assert tuned.summary.gain > 0.05
    loaded = served(tuned, model, df, tmp_path)
    before, after = (m.stages[6].getScalingVec().toArray() for m in (model, loaded))
    assert before.tolist() == np.linspace(1, 2, 7).tolist() != after.tolist()
    assert (loaded.stages[2].range.toArray() > 0).all()
    assert loaded.stages[4].selectedFeatures == model.stages[4].selectedFeatures


@pytest.fixture(scope="module")
def texts(spark: SparkSession) -> DataFrame:
    """1,500 texts of 8 of 60 words, of which ten say what the label is."""
    random = np.random.default_rng(2)
    words = (60 * random.beta(0.6, 1.4, size=(1500, 8))).astype(int)
    score = np.where(words < 10, np.where(words % 2, 1.0, -1.0), 0.0).sum(1)
    label = (score + random.logistic(size=1500) / 2 > 0).astype(float)
    rows = [(" ".join(f"w{w}" for w in row), float(y)) for row, y in zip(words, label, strict=True)]
    return spark.createDataFrame(rows, ["text", "label"]).coalesce(2).cache()


@pytest.mark.nightly
def test_words(texts: DataFrame, tmp_path: Path) -> None:
    """Counts stay sparse from the cache to the margin; what idf left out, and what was counted, stays as it was."""
    model = Pipeline(
        stages=[
            Tokenizer(inputCol="text", outputCol="words"),
            HashingTF(inputCol="words", outputCol="counts", numFeatures=1 << 14),
            IDF(inputCol="counts", outputCol="weighed", minDocFreq=20),
            LogisticRegression(featuresCol="weighed", regParam=1.0),
        ]
    ).fit(texts)
    found = sparkdiff.plan(model)
    assert trained(model) == ["IDFModel", "LogisticRegressionModel"]
    assert found.cacheCols == ("counts",)
    tuned = tune(model, texts, tmp_path / "cache", maxEpochs=8)
    assert tuned.summary.gain > 0.05
    loaded = served(tuned, model, texts, tmp_path)
    old, new = model.stages[2], loaded.stages[2]
    assert (new.docFreq, new.numDocs, new.getMinDocFreq()) == (old.docFreq, old.numDocs, 20)
    a, b = old.idf.toArray(), new.idf.toArray()
    assert ((a == 0) == (b == 0)).all()
    assert 10 < (a != b).sum() <= 60


@pytest.mark.nightly
def test_stages_without_parameters_pass_gradients_on(df: DataFrame, shared: Path, tmp_path: Path) -> None:
    model = Pipeline(
        stages=[
            VectorAssembler(inputCols=NUMBERS, outputCol="v"),
            RobustScaler(inputCol="v", outputCol="robust"),
            Normalizer(inputCol="robust", outputCol="unit"),
            VectorSlicer(inputCol="unit", outputCol="picked", indices=[3, 1, 2]),
            LogisticRegression(featuresCol="picked", labelCol="rain", regParam=0.3),
        ]
    ).fit(df)
    assert trained(model) == ["RobustScalerModel", "LogisticRegressionModel"]
    tuned = tune(model, df, shared)
    loaded = served(tuned, model, df, tmp_path)
    assert loaded.stages[1].range != model.stages[1].range
