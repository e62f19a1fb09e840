"""Spark's outputs that the cache keeps: a run whose stages and rows are those of an earlier one doesn't ask for them again."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.feature import Imputer, VectorAssembler
from pyspark.ml.regression import LinearRegression
from pyspark.sql import DataFrame, functions as F

from sparkdiff import FineTuner, ParityError
from sparkdiff.evaluation import cached_parity

Fit = Callable[[PipelineModel], tuple[int, dict[str, Any]]]


@pytest.fixture
def fit(df: DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """How often a fit asks Spark for the outputs of the original, and its parity."""
    asked: list[Any] = []
    run = cached_parity.run_in_spark
    monkeypatch.setattr(cached_parity, "run_in_spark", lambda *given: asked.append(given) or run(*given))

    def again(model: PipelineModel) -> tuple[int, dict[str, Any]]:
        asked.clear()
        tuner = FineTuner(pipeline=model, labelCol="riders", maxEpochs=1, cacheDir=str(tmp_path), rowsAreNew=True)
        summary = tuner.fit(df).summary
        # A tuned pipeline is run in Spark once more, always.
        return len(asked) - (summary.decision == "tuned"), summary.parity["before"]

    return again


def test_spark_is_asked_once_for_the_same_stages_and_rows(
    fit: Fit, numeric: PipelineModel, df: DataFrame, tmp_path: Path
) -> None:
    times, parity = fit(numeric)
    assert times == 1
    assert fit(numeric) == (0, parity)
    scaler = numeric.stages[1].copy()
    scaler._set(withMean=not scaler.getWithMean())
    assert fit(PipelineModel([numeric.stages[0], scaler, *numeric.stages[2:]]))[0] == 1  # another Param
    assert fit(numeric)[0] == 1  # only the last stages' outputs are kept
    (kept,) = tmp_path.glob("*/spark-*")
    file = next(kept.glob("part-*.parquet"))
    content = file.read_bytes()
    file.write_bytes(content[:-9] + b"x" + content[-8:])
    assert fit(numeric) == (1, parity)
    next(tmp_path.glob("*/spark-*/part-*.parquet")).unlink()
    assert fit(numeric) == (1, parity)


def test_kept_outputs_may_go_while_they_are_compared(
    fit: Fit, numeric: PipelineModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process, of the same stages or others, removes them to put its own there."""
    _, parity = fit(numeric)
    compare = cached_parity.compare

    def late(*given: Any) -> Any:
        for file in tmp_path.glob("*/spark-*/part-*.parquet"):
            file.unlink()
        return compare(*given)

    monkeypatch.setattr(cached_parity, "compare", late)
    assert fit(numeric) == (0, parity)


def test_kept_outputs_that_differ_from_the_network_stop_the_run(
    fit: Fit, numeric: PipelineModel, tmp_path: Path
) -> None:
    fit(numeric)
    (kept,) = tmp_path.glob("*/spark-*")
    index = json.loads((kept / "index.json").read_text())
    for file in kept.glob("part-*.parquet"):
        table = pq.read_table(file)
        last = len(table.column_names) - 1
        moved = pc.add(table.column(last), 1e-6)
        pq.write_table(table.set_column(last, table.column_names[last], moved), file)
        index["files"][file.name] = sha256(file.read_bytes()).hexdigest()
    (kept / "index.json").write_text(json.dumps(index))
    with pytest.raises(ParityError, match="Spark and the network disagree"):
        fit(numeric)


def test_a_feature_may_be_named_like_a_column_of_the_cache(df: DataFrame, tmp_path: Path) -> None:
    """Its type reaches Spark in the comparison: an Imputer takes whole and other numbers by their types."""
    whole = F.when(F.col("noise") < 1, F.col("number").cast("int") % 7)
    rows = df.withColumn("time", whole).withColumn("kind", whole)
    stages = [
        Imputer(inputCols=["time", "kind", "wind"], outputCols=["t", "k", "w"]),
        VectorAssembler(inputCols=["t", "k", "w"], outputCol="features"),
        LinearRegression(labelCol="riders"),
    ]
    model = Pipeline(stages=stages).fit(rows)
    tuner = FineTuner(pipeline=model, maxEpochs=1, guardCols=["kind"], cacheDir=str(tmp_path), rowsAreNew=True)
    assert tuner.fit(rows).summary.parity["before"]["ok"]
