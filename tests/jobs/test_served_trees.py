"""Trees tuned by a job and imported trees, used where none of the libraries that made them can be imported."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.support import plain_spark
from tests.support.spark_submit import ROOT, submit, summary

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped job: 20 boosted trees for the 0.9 quantile."""
    folder = tmp_path_factory.mktemp("runs") / "bikeshare_gbt"
    submit(ROOT / "jobs" / "finetune.py", "--config", "conf/bikeshare_gbt.yaml", f"output.path={folder}")
    return folder


def test_trees_fitted_by_squares_learn_a_quantile(run: Path) -> None:
    found = summary(run)
    assert (found["decision"], found["metric"]) == ("tuned", "quantile")
    assert found["metrics"]["test"]["after"] < 0.6 * found["metrics"]["test"]["before"]


def test_tuned_and_imported_trees_are_served_by_spark_alone(run: Path, tmp_path: Path, spark: Any) -> None:
    from pyspark.ml import PipelineModel
    from pyspark.ml.functions import vector_to_array
    from pyspark.sql import functions as F
    from sklearn.ensemble import HistGradientBoostingRegressor

    from sparkdiff import from_sklearn

    schema = yaml.safe_load((ROOT / "conf" / "bikeshare_gbt.yaml").read_text())["data"]["train"]["schema"]
    hours = spark.read.schema(schema).option("header", True).csv(f"file://{ROOT}/data/bikeshare.csv")
    hours.coalesce(1).withColumn("id", F.monotonically_increasing_id()).write.parquet(f"file://{tmp_path}/rows")
    rows = spark.read.parquet(f"file://{tmp_path}/rows").orderBy("id")

    tuned = PipelineModel.load(f"file://{run}/model")
    before = PipelineModel(tuned.stages[:-1])
    frame = before.transform(rows).select(vector_to_array("features").alias("x"), "bikers").toPandas()
    x = np.stack(frame["x"].to_list())
    boosted = HistGradientBoostingRegressor(loss="poisson", max_iter=50, categorical_features=[1, 6], random_state=0)
    boosted.fit(x, frame["bikers"])
    home = PipelineModel([*before.stages, from_sklearn(boosted)])
    home.write().save(f"file://{tmp_path}/home")

    there = plain_spark.predictions([run / "model", tmp_path / "home"], tmp_path / "rows")
    here = [[row["prediction"] for row in m.transform(rows).select("prediction").collect()] for m in (tuned, home)]
    assert there == here
    assert len(there[0]) == len(x) == 8645
    coverage = float(np.mean(np.array(frame["bikers"]) <= np.array(there[0])))
    assert 0.85 < coverage < 0.95
    np.testing.assert_allclose(there[1], boosted.predict(x), rtol=1e-9)
