"""What is saved is what was tested: the saved pipeline, loaded and run whole, gives the outputs of the one in memory."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from pyspark.ml import Pipeline, PipelineModel, Transformer
from pyspark.ml.clustering import LDA
from pyspark.ml.evaluation import RegressionEvaluator
from pyspark.ml.feature import Binarizer, MinMaxScaler, SQLTransformer, StringIndexer, VectorAssembler
from pyspark.ml.param.shared import HasInputCol, HasOutputCol
from pyspark.ml.regression import LinearRegression
from pyspark.ml.tuning import ParamGridBuilder, TrainValidationSplit
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable
from pyspark.sql import DataFrame, functions as F

from sparkdiff import FineTuner, Search
from sparkdiff.cli.app import main
from sparkdiff.errors import DONE, FAILED
from sparkdiff.evaluation.model_saving import check_saved, not_compared
from sparkdiff.evaluation.prediction_differences import compare_outputs
from tests.support.small_data import QUICK, tune, unfitted


class Shifted(Transformer, HasInputCol, HasOutputCol, DefaultParamsReadable, DefaultParamsWritable):  # type: ignore[type-arg]
    """A stage of one's own that doesn't keep all of its state in Params."""

    shift = 0.0

    def _transform(self, dataset: DataFrame) -> DataFrame:
        return dataset.withColumn(self.getOrDefault("outputCol"), F.col(self.getOrDefault("inputCol")) + self.shift)


class NotSaved(Shifted):
    """One that can't be saved."""

    def write(self) -> Any:
        raise NotImplementedError("this stage lives in one process")


class Described(Shifted):
    """One that writes its state to the metadata of its column alone."""

    def _transform(self, dataset: DataFrame) -> DataFrame:
        described = F.col(self.getOrDefault("inputCol")).alias("wind", metadata={"shift": self.shift})
        return dataset.withColumn(self.getOrDefault("outputCol"), described)


def shifted(shift: float, kind: type[Shifted] = Shifted) -> Shifted:
    stage = kind()._set(inputCol="temp", outputCol="wind")
    stage.shift = shift
    return stage  # type: ignore[no-any-return]


def with_stages(df: DataFrame, *first: Transformer) -> PipelineModel:
    return Pipeline(stages=[*first, *unfitted().getStages()]).fit(df)


FORGOTTEN = (
    r"other outputs than the one in memory.*: Shifted_\w+ \(Shifted\): column 'wind' has other values in 1,00. of 1,00."
)
SQL = "SELECT *, rand() AS chance, current_timestamp() AS now FROM __THIS__"


def test_a_fit_warns_of_state_that_is_not_saved(df: DataFrame, folder: Path) -> None:
    with pytest.warns(UserWarning, match=FORGOTTEN + ".*Keep in Params"):
        tuned = tune(with_stages(df, shifted(0.5)), df, folder)
    assert tuned.summary.saved["differs"] in tuned.summary.warnings
    assert tuned.summary.saved["rows"] == 0


def test_a_clean_pipeline_is_compared_in_silence(model: PipelineModel, df: DataFrame, folder: Path) -> None:
    saved = tune(model, df, folder).summary.saved
    columns = len(model.transform(df).columns)
    assert saved == {"rows": 1000 + 5, "columns": columns, "leftOut": []}  # and a row for each label of the indexer


@pytest.mark.nightly
def test_columns_that_differ_each_time_are_named_and_left_out(df: DataFrame, folder: Path) -> None:
    tuned = tune(with_stages(df, SQLTransformer(statement=SQL)), df, folder)
    assert tuned.summary.saved["leftOut"] == ["chance", "now"]
    assert tuned.summary.saved["columns"] == len(tuned.transform(df).columns) - 2
    with pytest.warns(UserWarning, match=FORGOTTEN):  # beside them, others count
        tuned = tune(with_stages(df, SQLTransformer(statement=SQL), shifted(0.5)), df, folder)
    assert "chance" not in tuned.summary.saved["differs"]


@pytest.mark.nightly
def test_topics_that_differ_at_each_load_are_left_out(df: DataFrame, folder: Path) -> None:
    """Spark's DistributedLDAModel adds up its topics in another order each time, and no user can mend that."""
    topics = [
        VectorAssembler(inputCols=["temp", "wind"], outputCol="counts"),
        MinMaxScaler(inputCol="counts", outputCol="shares"),
    ]
    lda = LDA(k=2, maxIter=1, optimizer="em", seed=1, featuresCol="shares", topicDistributionCol="topics")
    model = Pipeline(stages=[*topics, lda, *unfitted().getStages()]).fit(df.limit(300))
    found = tune(model, df, folder, maxEpochs=1).summary
    assert found.saved["leftOut"] in ([], ["topics"]) and "differs" not in found.saved, found.saved
    # What is lost behind it is told all the same.
    model = PipelineModel([*model.stages[:3], shifted(3.0), *model.stages[3:]])
    with pytest.warns(UserWarning, match=FORGOTTEN):
        tune(model, df, folder, maxEpochs=1)


def test_a_pipeline_that_cannot_be_saved_says_so_in_the_summary(df: DataFrame, folder: Path) -> None:
    saved = tune(with_stages(df, shifted(0.5, NotSaved)), df, folder).summary.saved
    assert saved["rows"] == 0
    assert saved["why"].startswith("the pipeline cannot be saved: ") and "lives in one process" in saved["why"]


def test_fits_within_a_search_are_not_compared(model: PipelineModel, df: DataFrame, folder: Path) -> None:
    tuner = FineTuner(model, cacheDir=str(folder), **QUICK)
    grid = ParamGridBuilder().addGrid(tuner.maxEpochs, [1, 2]).build()
    assert [found.summary.saved for found in tuner.fit(df, grid)] == [{}, {}]


@pytest.mark.nightly
def test_fits_of_a_pipeline_within_a_search_are_not_compared(model: PipelineModel, df: DataFrame, folder: Path) -> None:
    """A Pipeline doesn't tell its stages that a CrossValidator fits it."""
    tuner = FineTuner(model, cacheDir=str(folder), **QUICK | {"maxEpochs": 1})
    search = TrainValidationSplit(
        estimator=Pipeline(stages=[tuner]),
        estimatorParamMaps=[{tuner.regAnchor: 0.0}, {tuner.regAnchor: 0.5}],
        evaluator=RegressionEvaluator(labelCol="riders"),
        collectSubModels=True,
        parallelism=2,
    )
    found = search.fit(df)
    assert [trial.stages[0].summary.saved for trial in found.subModels] == [{}, {}]
    assert found.bestModel.stages[0].summary.saved["rows"] >= 1000


@pytest.mark.nightly
def test_a_search_warns_too(df: DataFrame) -> None:
    head = LinearRegression(featuresCol="components", labelCol="riders")
    pipeline = Pipeline(stages=[shifted(0.5), *unfitted("riders", 3, head).getStages()])
    search = Search(
        pipeline,
        space={head.regParam: [0.0, 0.1]},
        evaluator=RegressionEvaluator(labelCol="riders"),
        numFolds=0,
        sampler="grid",
        rowsAreNew=True,
    )
    with pytest.warns(UserWarning, match=FORGOTTEN):
        found = search.fit(df)
    assert found.summary.saved["differs"] in found.summary.warnings


JOB = """
pipeline: forgetful:pipeline
data: {train: rows.parquet}
fineTuner: {labelCol: riders, maxEpochs: 2, recipe: fast, stream: arrow, validationFraction: 0.2}
output: out
"""
SEARCH = """
pipeline: forgetful:pipeline
data: {train: rows.parquet}
search: {metric: rmse, space: {PCA: {k: [1, 3]}}, sampler: grid, numFolds: 0}
output: out
"""
MODULE = """
from pyspark.ml import Pipeline
from tests.support.small_data import unfitted
from test_what_is_saved import shifted

def pipeline(train):
    return Pipeline(stages=[shifted(SHIFT), *unfitted().getStages()])
"""


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("command", "job"), [("finetune", JOB), pytest.param("search", SEARCH, marks=pytest.mark.nightly)]
)
def test_a_job_stops_and_leaves_no_folder(
    command: str, job: str, df: DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    df.write.parquet(f"file://{tmp_path}/rows.parquet")
    name = f"forgetful_{command}"
    (tmp_path / "job.yaml").write_text(job.replace("forgetful", name))
    (tmp_path / f"{name}.py").write_text(MODULE.replace("SHIFT", "0.5"))
    monkeypatch.chdir(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    assert main([command, "--config", "job.yaml"]) == FAILED
    error = capsys.readouterr().err
    assert "(Shifted): column 'wind' has other values in 1," in error and "Keep in Params" in error
    assert {path.name for path in tmp_path.iterdir()} - before <= {".cache", "__pycache__"}
    (tmp_path / f"{name}.py").write_text(MODULE.replace("SHIFT", "0.0"))
    monkeypatch.delitem(sys.modules, name)
    assert main([command, "--config", "job.yaml", "output=clean"]) == DONE
    saved = json.loads((tmp_path / "clean" / "summary.json").read_text())["saved"]
    assert saved["rows"] >= 1000 and saved["leftOut"] == []


# The comparison -------------------------------------------------------------------------------------------------------

SAME = {
    "nan": "double('nan')",
    "zero": "-0.0d",
    "vector": "array(-0.0d, 1.0d, null)",
    "text": "'a'",
    "none": "cast(null as int)",
    "map": "map('a', 1)",
    "struct": "named_struct('x', 1.0d)",
    "time": "timestamp'2024-01-01 00:00:00.000001'",
}
OTHER = {
    "nan": "1.0d",
    "zero": "0.0d",
    "vector": "array(0.0d, 1.0d, null)",
    "text": "'b'",
    "none": "1",
    "map": "map('a', 2)",
    "struct": "named_struct('x', 2.0d)",
    "time": "timestamp'2024-01-01 00:00:00.000002'",
}


def sql(columns: dict[str, str], rows: str = "*", where: str = "true") -> SQLTransformer:
    told = ", ".join([rows, *(f"{value} AS `{name}`" for name, value in columns.items())])
    return SQLTransformer(statement=f"SELECT {told} FROM __THIS__ WHERE {where}")


def test_each_kind_of_value_is_compared_bit_by_bit(df: DataFrame) -> None:
    few = df.limit(20)
    assert compare_outputs(sql(SAME), sql(SAME), few)[0] == {}
    found, compared = compare_outputs(sql(SAME), sql(OTHER), few)
    assert {name for name in SAME if "has other values in 20 of 20 rows" in found[name]} == {*SAME}
    assert set(found) == {*SAME}
    assert (compared["rows"], compared["leftOut"]) == (20, [])
    assert compare_outputs(sql(SAME), sql(SAME | {"text": "if(hour = 'h0', 'b', 'a')"}), df)[0].keys() == {"text"}


def test_rows_that_a_stage_drops_repeats_or_orders_otherwise(df: DataFrame) -> None:
    one = sql({"double": "2 * temp"}, where="temp > 0")
    again = sql({"double": "2 * temp"}, where="temp > 0 ORDER BY wind")
    assert compare_outputs(one, again, df)[0] == {}
    assert "the table" in compare_outputs(one, sql({"double": "2 * temp"}, where="temp > 0.5"), df)[0]
    repeat = sql({"entry": "explode(array(temp, hum))"})
    assert compare_outputs(repeat, sql({"entry": "explode(array(hum, temp))"}), df)[0] == {}
    assert compare_outputs(repeat, sql({"entry": "explode(array(hum, hum))"}), df)[0].keys() == {"entry"}


def test_rows_without_their_number_are_compared_by_their_values(df: DataFrame) -> None:
    columns = {"double": "2 * temp", "wind": "wind"}
    assert compare_outputs(sql(columns, "hour"), sql(columns, "hour", "true ORDER BY wind"), df)[0] == {}
    assert [*compare_outputs(sql(columns, "hour"), sql(columns | {"double": "3 * temp"}, "hour"), df)[0]] == [
        "the table",
        "double",
    ]
    mixed = sql({"double": "2 * lead(temp) OVER (ORDER BY wind)", "wind": "wind"}, "hour")
    assert "the table" in compare_outputs(sql(columns, "hour"), mixed, df)[0]


def test_columns_types_and_metadata_are_compared(df: DataFrame) -> None:
    found, _ = compare_outputs(sql({"x": "1"}), sql({"x": "1L"}), df)
    assert found["x"].startswith("has dataType LongType(), not IntegerType()")
    found, _ = compare_outputs(sql({"x": "1"}), sql({"y": "1"}), df)
    assert found["the table"].endswith("y, not " + ", ".join([*df.columns, "x"]))
    told = [shifted(shift, Described) for shift in (0.0, 1.0)]
    assert compare_outputs(told[0], told[0], df)[0] == {}
    assert compare_outputs(*told, df)[0] == {"wind": "has metadata {'shift': 1.0}, not {'shift': 0.0}"}


def test_a_refused_edge_does_not_hide_the_others(df: DataFrame) -> None:
    """The assembler refuses NaN, at which the Binarizer jumps; a label that the first 1,000 rows lack counts nevertheless."""
    labels = StringIndexer(inputCol="kind", outputCol="index").fit(
        df.select(F.lit("usual").alias("kind")).unionAll(df.select(F.lit("rare").alias("kind")))
    )
    stages = [
        labels,
        Binarizer(inputCol="temp", outputCol="warm"),
        VectorAssembler(inputCols=["temp", "warm"], outputCol="both"),
    ]
    usual = df.withColumn("kind", F.lit("usual"))
    one, other = (
        PipelineModel([*stages, SQLTransformer(statement=f"SELECT *, {value} AS out FROM __THIS__")])
        for value in ("1", "if(kind = 'rare', 2, 1)")
    )
    found, compared = compare_outputs(one, other, usual)
    assert found["out"] == "has other values in 1 of 1,004 rows"
    assert compared["rows"] == 1004  # two labels, and two values at the threshold of the Binarizer


def test_a_saved_pipeline_that_cannot_be_compared_is_named(df: DataFrame, folder: Path) -> None:
    model = PipelineModel([Binarizer(inputCol="temp", outputCol="warm", threshold=0.5)])
    model.write().save(f"file://{folder}/binary")
    result = check_saved(
        model, folder / "binary", lambda: df.withColumn("temp", F.expr("CAST(raise_error('broken') AS DOUBLE)"))
    )
    assert result["rows"] == 0
    [told] = not_compared(result)
    assert (
        told.startswith("the saved pipeline was loaded, but not compared: the pipeline in memory fails: ")
        and "broken" in told
    )
    assert not_compared(check_saved(model, folder / "binary", lambda: df)) == []
