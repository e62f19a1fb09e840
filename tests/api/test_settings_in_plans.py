"""Settings of Grower, Improver and Search: each shows in the plan that is printed first, or code that runs later reads it."""

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.feature import StandardScaler, VectorAssembler
from pyspark.ml.regression import LinearRegression
from pyspark.sql import DataFrame, SparkSession, functions as F

import sparkdiff
from sparkdiff import Grower, Improver
from sparkdiff.growth.growth_options import GrowthSettings
from sparkdiff.improvement.improvement_options import ImprovementSettings
from sparkdiff.search.search_options import Settings

PACKAGE = Path(sparkdiff.__file__).parent
# In the plan: a value other than the default.
SHOWN: dict[Any, dict[str, Any]] = {
    Grower: {"parts": ["units"], "rounds": 2, "entityCols": ["shop"], "maxServingCost": 9.0, "dropColumns": True},
    Improver: {
        "budget": "10m",
        "arms": ["refit"],
        "keepForm": True,
        "keepStages": ["StandardScalerModel"],
        "baseline": False,
        "maxServingCost": 1.0,
    },
}
# In what runs: the folders whose code reads it.
READ = {
    GrowthSettings: (["growth"], {"complexity", "maxLoss"}),
    ImprovementSettings: (["improvement"], {"maxLoss", "parallelism", "order", "parts", "entityCols"}),
    Settings: (["search", "estimators"], {field.name for field in dataclasses.fields(Settings)}),
}


@pytest.fixture(scope="module")
def rows(spark: SparkSession) -> DataFrame:
    return (
        spark.range(200)
        .select(
            (F.col("id") % 7).cast("double").alias("x"),
            (F.col("id") % 5).alias("shop"),
            F.rand(1).alias("z"),
            F.rand(2).alias("y"),
        )
        .cache()
    )


@pytest.fixture(scope="module")
def model(rows: DataFrame) -> PipelineModel:
    stages = [
        VectorAssembler(inputCols=["x", "z"], outputCol="both"),
        StandardScaler(inputCol="both", outputCol="features"),
        LinearRegression(labelCol="y"),
    ]
    return Pipeline(stages=stages).fit(rows)


def test_every_setting_is_in_one_of_the_lists() -> None:
    shown = {tuner.SETTINGS: set(values) for tuner, values in SHOWN.items()}
    for settings, (_, read) in READ.items():
        assert shown.get(settings, set()) ^ read == {field.name for field in dataclasses.fields(settings)}


@pytest.mark.parametrize(("tuner", "name"), [(tuner, name) for tuner, values in SHOWN.items() for name in values])
def test_a_setting_changes_the_plan(model: PipelineModel, rows: DataFrame, tuner: Any, name: str) -> None:
    assert tuner(model, **{name: SHOWN[tuner][name]}).explain(rows) != tuner(model).explain(rows)


@pytest.mark.parametrize("settings", READ)
def test_a_setting_is_read_by_what_runs(settings: Any) -> None:
    folders, names = READ[settings]
    files = [path for folder in folders for path in (PACKAGE / folder).rglob("*.py")]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files if not path.stem.endswith("_options")]
    read = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert names <= read
