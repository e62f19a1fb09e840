"""Every wrong input gives one InputError that names stage, column, value and remedy, and leaves no partial output."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.clustering import BisectingKMeans
from pyspark.ml.feature import PCA, OneHotEncoder, SQLTransformer, StandardScaler, StringIndexer, VectorAssembler
from pyspark.ml.functions import array_to_vector
from pyspark.ml.regression import GeneralizedLinearRegression, LinearRegression
from pyspark.sql import DataFrame, SparkSession, functions as F

import sparkdiff
from sparkdiff import FineTuner, InputError, SparkdiffError
from sparkdiff.data.label_stats import label_stats, weight_range
from sparkdiff.evaluation.row_checks import all_labels, check_varies
from sparkdiff.objectives import losses
from sparkdiff.objectives.label_checks import check_label
from sparkdiff.options import Options
from sparkdiff.pipeline.network import Network
from sparkdiff.stages.base import LabelStats
from sparkdiff.training.preparation import resolve_objectives
from tests.support.small_data import NUMBERS, pinball, tune, unfitted

NAN, INF = float("nan"), float("inf")
Change = Callable[[DataFrame], DataFrame]
ANY_LABEL = LabelStats(0.5, 0.5, 0.0, 1.0, torch.tensor([1, 1]))


def row_7(column: str, value: Any) -> Change:
    """One row in 1,500 is wrong."""
    return lambda df: df.withColumn(column, F.when(F.col("number") == 7, F.lit(value)).otherwise(F.col(column)))


def refused(sentence: str, model: Any, df: Any, folder: Path, **options: Any) -> None:
    """The fit raises InputError, and what lies in the folder, if anything, is complete."""
    with pytest.raises(InputError, match=sentence) as caught:
        tune(model, df, folder, **options)
    assert isinstance(caught.value, SparkdiffError)
    assert "\n" not in str(caught.value)
    left = list(folder.iterdir()) if folder.exists() else []
    assert all((p / "manifest.json").exists() and not p.name.startswith(".") for p in left), left


# Pipelines ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [sparkdiff.plan, sparkdiff.translate], ids=lambda f: f.__name__)
def test_what_isnt_fitted(spark: SparkSession, call: Callable[[Any], Any]) -> None:
    pipeline = unfitted()
    with pytest.raises(InputError, match=f"Pipeline {pipeline.uid} isn't fitted: call fit.. first"):
        call(pipeline)
    scaler = StandardScaler(inputCol="a", outputCol="b")
    with pytest.raises(InputError, match=f"StandardScaler {scaler.uid} isn't fitted"):
        call(scaler)
    with pytest.raises(InputError, match=f"StandardScaler {scaler.uid} isn't fitted"):
        call(PipelineModel([scaler]))
    from sklearn.pipeline import Pipeline as Other

    for nothing, told in (
        (None, "NoneType$"),
        (3, "int$"),
        (PipelineModel, "the class PipelineModel itself$"),
        ("models/churn", "str: load it with PipelineModel.load.path.$"),
        (Path("models"), "pathlib.PosixPath: load it with PipelineModel.load.path.$"),
        ([scaler], "list: create one from fitted stages with PipelineModel.stages.$"),
        (Other([]), "sklearn.Pipeline: import a fitted tree model with sparkdiff.from_sklearn.model.$"),
        (pd.DataFrame(), "pandas.DataFrame$"),
    ):
        with pytest.raises(InputError, match=f"expected a fitted PipelineModel or stage, got {told}"):
            call(nothing)


def test_an_unfitted_stage_for_a_tuner(df: DataFrame, folder: Path) -> None:
    scaler = StandardScaler(inputCol="a", outputCol="b")
    refused(f"{scaler.uid} isn't fitted: pass the result of its fit.., or put it into a Pipeline", scaler, df, folder)
    refused("expected a fitted PipelineModel or stage, got str", "models/churn", df, folder)


def test_an_unfitted_pipeline_that_cannot_be_fitted(df: DataFrame, folder: Path) -> None:
    pipeline = unfitted("bikers")
    refused(f"{pipeline.uid} cannot be fitted on the training rows: .*bikers", pipeline, df, folder)


@pytest.mark.parametrize("option", ["freeze", "reference", "target"])
def test_a_stage_that_isnt_there(df: DataFrame, numeric: PipelineModel, folder: Path, option: str) -> None:
    sentence = f"{option}='scald' is no uid, class or output column of a stage. Did you mean 'scaled'"
    refused(sentence, numeric, df, folder, **{option: ["scald"]})


def test_nothing_to_train(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    refused(
        "nothing to train in .*: frozen on request", numeric, df, folder, freeze=[s.uid for s in numeric.stages[1:]]
    )
    indexer = Pipeline(stages=[StringIndexer(inputCol="hour", outputCol="index")]).fit(df)
    refused(f"nothing to train in .*{indexer.stages[0].uid}: its input is strings", indexer, df, folder)
    vectors = VectorAssembler(inputCols=NUMBERS, outputCol="features")
    clusters = Pipeline(
        stages=[
            vectors,
            StandardScaler(inputCol="features", outputCol="s"),
            BisectingKMeans(featuresCol="s", k=2, maxIter=1),
        ]
    )
    refused("nothing to train in .*StandardScaler.*no predictor", clusters.fit(df), df, folder)
    refused("nothing to train", numeric, df, folder, reference=[s.uid for s in numeric.stages])
    assert not folder.exists()


def test_several_predictors(df: DataFrame, folder: Path) -> None:
    heads = [
        LinearRegression(featuresCol="x", labelCol="riders", predictionCol=f"p{i}", maxIter=1, regParam=1.0)
        for i in (1, 2)
    ]
    both = Pipeline(stages=[VectorAssembler(inputCols=NUMBERS, outputCol="x"), *heads]).fit(df)
    one, other = (s.uid for s in both.stages[1:])
    sentence = rf"there are several predictors to train for: {one} \(p1\); {other} \(p2\). Set predictionCol"
    refused(sentence, both, df, folder)
    refused("no trainable predictor writes predictionCol='p3'. Known: p1, p2", both, df, folder, predictionCol="p3")
    found = tune(both, df, folder, predictionCol="p1", guard=1.0).summary
    assert found.decision == "tuned", found.reason


def test_a_target_that_cannot_train(df: DataFrame, model: PipelineModel, folder: Path) -> None:
    refused(
        f"target='{model.stages[0].uid}' can't train: its input is strings", model, df, folder, target=["hour_index"]
    )


# Columns --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["labelCol", "weightCol", "validationIndicatorCol", "groupCol", "timeCol"])
def test_a_column_that_isnt_there(df: DataFrame, numeric: PipelineModel, folder: Path, option: str) -> None:
    refused(
        f"{option}='numbr' is not a column of the data. Did you mean 'number'", numeric, df, folder, **{option: "numbr"}
    )
    assert not folder.exists()


def test_a_feature_column_that_isnt_there(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    sentence = f"{numeric.stages[0].uid} reads column 'wind', which is not in the data. Did you mean 'wnd'"
    refused(sentence, numeric, df.withColumnRenamed("wind", "wnd"), folder)
    refused("riders", numeric, df.drop("riders"), folder)  # the predictor's own label
    assert not folder.exists()


@pytest.mark.parametrize("option", ["labelCol", "weightCol"])
def test_a_string_where_a_number_is_needed(df: DataFrame, numeric: PipelineModel, folder: Path, option: str) -> None:
    text = df.withColumn("text", F.col("number").cast("string"))
    refused(
        f"{option}='text' is string, but must be a number: cast or index it", numeric, text, folder, **{option: "text"}
    )
    assert not folder.exists()


def test_a_string_feature(df: DataFrame, model: PipelineModel, numeric: PipelineModel, folder: Path) -> None:
    text = df.withColumn("wind", F.col("wind").cast("string"))
    refused("column 'wind' is string; torch accepts numbers, vectors and arrays of numbers", model, text, folder)
    refused(f"Spark failed.*{numeric.stages[0].uid}.*string", numeric, text, folder)  # the assembler runs in Spark


def test_a_time_that_is_none(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    refused("timeCol='hour' must be a timestamp, date or number, got string", numeric, df, folder, timeCol="hour")
    refused(
        "timeCol='number' has no finite value",
        numeric,
        df.withColumn("number", F.lit(None).cast("int")),
        folder,
        timeCol="number",
    )


@pytest.mark.parametrize(("option", "column"), [("groupCol", "user"), ("validationIndicatorCol", "held")])
def test_null_in_a_column_that_splits(
    df: DataFrame, numeric: PipelineModel, folder: Path, option: str, column: str
) -> None:
    data = df.withColumn(column, F.when(F.col("temp") < 2, F.col(column)))
    refused(
        f"{option}='{column}' holds null.*fill the column or drop these rows", numeric, data, folder, **{option: column}
    )


def test_no_number_in_a_time(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    wrong = F.expr(
        "CASE WHEN number = 7 THEN CAST('NaN' AS DOUBLE) WHEN number < 10 THEN number WHEN number < 14 THEN null "
        "WHEN number = 20 THEN CAST('Infinity' AS DOUBLE) ELSE number END"
    )
    sentence = "timeCol='number' holds null or NaN or an infinite value in 6 rows.*fill the column or drop these rows"
    refused(sentence, numeric, df.withColumn("number", wrong), folder, timeCol="number")


def test_null_in_the_time_of_a_given_side(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    refused(
        "timeCol='number' holds null",
        numeric,
        row_7("number", None)(df),
        folder,
        timeCol="number",
        validationIndicatorCol="held",
    )


def test_an_indicator_that_isnt_boolean(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    refused("validationIndicatorCol='rain' must be boolean", numeric, df, folder, validationIndicatorCol="rain")


# Labels ---------------------------------------------------------------------------------------------------------------


def test_a_label_that_is_no_number(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    sentence = "labelCol='riders' holds nan in 1 or more rows; a label must be a finite number: drop or fill these rows"
    refused(sentence, numeric, row_7("riders", NAN)(df), folder)
    assert list(folder.iterdir()) == []


def stats_of(folder: Path, **columns: list[Any]) -> dict[str, Any]:
    """The statistics of labels and weights, as of a cache with one file of these columns."""
    rows = len(columns["label"])
    given = {"weight": [1.0] * rows, "block": list(range(rows)), **columns}
    pq.write_table(
        pa.table({k: pa.array(v, pa.int64() if k == "block" else pa.float64()) for k, v in given.items()}),
        folder / "rows.parquet",
    )
    request: Any = SimpleNamespace(
        options=Options(), cut=SimpleNamespace(columns=()), labelCol="riders", weightCol="weight"
    )
    shards = [[{"path": "rows.parquet"}]]
    return label_stats(folder, shards, request, weight_range(folder, shards, request)[1])


@pytest.mark.parametrize("value", [None, NAN, INF, -INF])
def test_labels_and_weights_of_files(tmp_path: Path, value: float | None) -> None:
    """Without Spark: what a cache's files may not hold, one row in a thousand."""
    wrong = [1.0] * 999 + [value]
    with pytest.raises(InputError, match=rf"labelCol='riders' holds {value!r} in 1 or more rows; a label must be .*"):
        stats_of(tmp_path, label=wrong)
    sentence = "in 1 or more rows; a weight must be .*>= 0: "
    with pytest.raises(InputError, match=f"weightCol='weight' holds {value!r} {sentence}"):
        stats_of(tmp_path, label=[1.0] * 1000, weight=wrong)
    with pytest.raises(
        InputError, match=r"weightCol='weight' holds -1\.0 in 1 or more rows; .*>= 0: check its sign, or clip"
    ):
        stats_of(tmp_path, label=[1.0] * 1000, weight=[*wrong[:999], -1.0])


@pytest.fixture(scope="module")
def heads(df: DataFrame) -> dict[str, PipelineModel]:
    assembler = VectorAssembler(inputCols=NUMBERS, outputCol="x", handleInvalid="keep")
    common: dict[str, Any] = {"featuresCol": "x", "maxIter": 1, "regParam": 1.0}
    found = {
        "linear": LinearRegression(labelCol="riders", **common),
        "poisson": GeneralizedLinearRegression(labelCol="riders", family="poisson", **common),
        "gamma": GeneralizedLinearRegression(labelCol="wait", family="gamma", link="log", **common),
        "binomial": GeneralizedLinearRegression(labelCol="rain", family="binomial", **common),
        "logistic": LogisticRegression(labelCol="rain", **common),
        "multinomial": LogisticRegression(labelCol="kind", **common),
    }
    return {name: Pipeline(stages=[assembler, head]).fit(df) for name, head in found.items()}


@pytest.fixture(scope="module")
def networks(heads: dict[str, PipelineModel]) -> dict[str, Network]:
    return {name: sparkdiff.translate(model) for name, model in heads.items()}


POISSON = ("poisson", "riders", -2.0, "poisson on GeneralizedLinearRegression needs labels >= 0; drop such rows")
CLASS = ("multinomial", "kind", 0.5, "logLoss on LogisticRegression needs class indices 0 to 2")


@pytest.mark.parametrize(("head", "label", "value", "rule"), [POISSON, CLASS])
def test_a_label_outside_of_what_the_loss_allows(
    df: DataFrame, heads: dict[str, PipelineModel], shared: Path, head: str, label: str, value: float, rule: str
) -> None:
    """A metric has its own rules."""
    sentence = f"label column '{label}' holds {value!r}, but .*{rule}"
    refused(sentence, heads[head], row_7(label, value)(df), shared)
    if head == "poisson":
        refused(sentence.partition(" on ")[0], heads["linear"], row_7(label, value)(df), shared, metric="poisson")


@pytest.mark.parametrize(
    ("head", "labels", "said"),
    [
        ("gamma", [0.0, 2.0], "holds 0.0, but gamma on GeneralizedLinearRegression needs labels > 0; drop such rows"),
        ("binomial", [0.0, 1.5], "holds 1.5, but logLoss on GeneralizedLinearRegression needs labels from 0 to 1"),
        ("binomial", [1.0, 2.0], "use riders - 1, or index them with a StringIndexer"),
        ("binomial", [-1.0, 1.0], r"use \(riders \+ 1\) / 2, or index them with a StringIndexer"),
        ("logistic", [0.0, 2.0], "holds 2.0, but logLoss on LogisticRegression needs class indices 0 to 1"),
        ("logistic", [-1.0, 1.0], r"use \(riders \+ 1\) / 2, or index them with a StringIndexer"),
        ("multinomial", [0.0, 3.0], "holds 3.0, but logLoss on LogisticRegression needs class indices 0 to 2"),
        ("multinomial", [-1.0, 2.0], "holds -1.0, but .* needs class indices 0 to 2"),
        ("multinomial", [0.0, 1e300], r"holds 1e\+300, but .* needs class indices 0 to 2"),
        (
            "linear",
            [0.0, 1e300],
            r"has values from 0.0 to 1e\+300, for which squared losses .*clean the column, or scale it",
        ),
        ("linear", [-1e150, 3.0], r"has values from -1e\+150 to 3.0.*; clean the column, or scale it"),
        ("linear", [0.0, 2e-199], "has values from 0.0 to 2e-199, for which squared losses"),
    ],
)
def test_labels_of_files_and_what_the_loss_allows(
    networks: dict[str, Network], tmp_path: Path, head: str, labels: list[float], said: str
) -> None:
    """Without a cache of Spark: from the labels in files to what is said."""
    predictor = networks[head].head
    for loss in ("auto", "absolute") if head == "linear" else ("auto",):
        found, fractional = all_labels({"train": stats_of(tmp_path, label=labels)})
        objective = losses.resolve(loss, {}, predictor, ("prediction",), ANY_LABEL)
        with pytest.raises(InputError, match=f"label column 'riders' .*{said}"):
            check_label(objective, predictor, found, "riders", fractional)


def test_predictions_beyond_all_bounds(df: DataFrame, heads: dict[str, PipelineModel], shared: Path) -> None:
    far = rf"the mean squared of {heads['linear'].uid} on the %s rows is %s: .*clean or scale the features"
    refused(far % (r"\w+", "inf"), heads["linear"], row_7("wind", 1e200)(df), shared)
    everywhere = df.withColumn("wind", F.col("wind") * 1e100)
    refused(far % ("validation", r".*e\+\d+, whose square overflows"), heads["linear"], everywhere, shared)
    kept = tune(heads["linear"], row_7("wind", 1e100)(df), shared).summary  # trains, and so decides nothing
    assert kept.decision == "kept original" and any("'wind' holds 1e+100" in w for w in kept.warnings)
    sentence = "the mean logLoss .* square overflows: .*smaller lossParams"
    refused(sentence, heads["logistic"], df, shared, lossParams={"classWeights": [1e300, 1e300]})


def test_a_learning_rate_beyond_all_bounds(df: DataFrame, heads: dict[str, PipelineModel], shared: Path) -> None:
    """Every candidate diverges: the original stays, and the report can be written."""
    found = tune(heads["linear"], df, shared, learningRate=1e300, maxEpochs=2)
    assert found.summary.decision == "kept original"
    assert not [w for w in found.summary.warnings if "there are few validation rows" in w]
    json.dumps(found.summary.asdict(), allow_nan=False)
    assert "kept original" in str(found.summary)
    assert len(found.summary.history.to_csv().splitlines()) > 2


def only(column: str, value: float, where: str = "true") -> Change:
    """One value in all these rows."""
    return lambda df: df.withColumn(column, F.when(F.expr(where), F.lit(value)).otherwise(F.col(column)))


def test_one_label_in_all_rows(df: DataFrame, heads: dict[str, PipelineModel], folder: Path) -> None:
    sentence = r"label column 'riders' holds 1\.0 in all [\d,]+ train rows of weight > 0.*add rows with other labels"
    data, options = only("riders", 1.0, "NOT held AND weight > 0")(df), {"weightCol": "weight"}
    refused(sentence, heads["poisson"], data, folder, validationIndicatorCol="held", **options)


@pytest.mark.parametrize("side", ["train", "validation"])
@pytest.mark.parametrize("head", ["logistic", "linear", "multinomial", "binomial"])
def test_one_label_in_the_files_of_a_side(networks: dict[str, Network], tmp_path: Path, head: str, side: str) -> None:
    empty = stats_of(tmp_path, label=[])
    stats = {s: stats_of(tmp_path, label=[0.0, 1.0]) for s in ("train", "validation")} | {
        "test": empty,
        "reference": empty,
    }
    predictor = networks[head].head
    assert check_varies(stats, Options(), predictor, "riders") == []
    stats[side] = stats_of(tmp_path, label=[1.0] * 40 + [0.0], weight=[2.0] * 40 + [0.0])
    sentence = rf"label column 'riders' holds 1\.0 in all 40 {side} rows of weight > 0.*add rows with other labels"
    with pytest.raises(InputError, match=sentence):
        check_varies(stats, Options(), predictor, "riders")


def test_one_label_and_what_compares_with_it(
    df: DataFrame, heads: dict[str, PipelineModel], shared: Path, tmp_path: Path
) -> None:
    """A named metric compares with labels, a loss of one's own may do without."""
    sentence = r"label column 'riders' holds 2\.0 in all [\d,]+ {} rows of weight > 0"
    own = {"loss": pinball, "maxEpochs": 1}
    refused(sentence.format("validation"), heads["linear"], only("riders", 2.0)(df), shared, **own, metric="mae")
    refused(sentence.format("train"), heads["linear"], only("riders", 2.0)(df), shared, loss="quantile", metric="mae")
    found = tune(heads["linear"], only("riders", 2.0)(df), shared, **own)
    assert [re.match(sentence.format("(train|validation)"), w).group(1) for w in found.summary.warnings[-2:]] == [
        "train",
        "validation",
    ]


def test_classes_that_are_named_otherwise(df: DataFrame, heads: dict[str, PipelineModel], shared: Path) -> None:
    named = df.withColumn("rain", F.expr("rain + 1"))
    refused(
        "the labels seem to .*, so use rain - 1, or index them with a StringIndexer", heads["logistic"], named, shared
    )


# Features -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("head", "value"), [("linear", NAN), ("poisson", INF), ("multinomial", -INF)])
def test_an_entry_of_a_vector_that_is_no_number(
    df: DataFrame, heads: dict[str, PipelineModel], folder: Path, head: str, value: float
) -> None:
    model = heads[head]
    vectors = row_7("wind", value)(df).withColumn("x", array_to_vector(F.array(*NUMBERS)))
    sentence = f"{model.stages[1].uid}: entry 2 of column 'x' holds {value!r}.*impute it before the pipeline, or drop these rows"
    refused(sentence, model.stages[1], vectors, folder)


def test_a_scalar_that_reaches_pca(df: DataFrame, folder: Path) -> None:
    fitted = Pipeline(
        stages=[
            StringIndexer(inputCol="hour", outputCol="index"),
            OneHotEncoder(inputCol="index", outputCol="onehot"),
            VectorAssembler(inputCols=["onehot", *NUMBERS], outputCol="v", handleInvalid="keep"),
            PCA(inputCol="v", outputCol="x", k=2),
            LinearRegression(featuresCol="x", labelCol="riders", maxIter=1),
        ]
    ).fit(df)
    sentence = f"{fitted.stages[3].uid}: column 'wind' holds nan .or null.*linear stage.*impute"
    for value in (None, NAN):
        refused(sentence, fitted, row_7("wind", value)(df), folder)


def test_an_assembler_that_takes_no_null(
    df: DataFrame, model: PipelineModel, numeric: PipelineModel, folder: Path
) -> None:
    advice = "put an Imputer in front of it, or set handleInvalid to 'skip'; 'keep' is for trees"
    sentence = f"{model.stages[2].uid}: column 'wind' holds null or NaN.*{advice}"
    for value in (None, NAN):
        data = row_7("wind", value)(df)
        refused(sentence, model, data, folder)
    refused(
        f"Spark failed while it ran .*{numeric.stages[0].uid}.*while assembling a row .*{advice}", numeric, data, folder
    )


def test_a_category_that_was_never_seen(df: DataFrame, model: PipelineModel, folder: Path) -> None:
    sentence = f"Spark failed while it ran .*{model.stages[0].uid}.*Unseen label: fog"
    refused(sentence, model, row_7("hour", "fog")(df), folder)
    assert list(folder.iterdir()) == []


def test_an_index_outside_of_the_categories(df: DataFrame, model: PipelineModel, folder: Path) -> None:
    index = StringIndexer(inputCol="hour", outputCol="hour_index").fit(df).transform(df).drop("hour")
    rest = PipelineModel(model.stages[1:])
    sentence = f"{model.stages[1].uid}: column 'hour_index' holds the index 9.0, but the categories are 0 to 4"
    refused(sentence, rest, row_7("hour_index", 9.0)(index), folder)


# Weights and numbers of rows ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unweighted(df: DataFrame, numeric: PipelineModel, shared: Path) -> float:
    found = tune(numeric, df, shared, validationIndicatorCol="held")
    assert found.summary.decision == "tuned"
    return found.summary.metrics["validation"]["before"]


@pytest.mark.parametrize("weight", ["1e-320D", "1.7e308D", "if(number % 3 = 0, 1e-320D, 1e-310D)"])
def test_weights_beyond_all_bounds(
    df: DataFrame, numeric: PipelineModel, shared: Path, unweighted: float, weight: str
) -> None:
    """Equal weights decide as none do, whatever their size."""
    data = df.withColumn("weight", F.expr(weight))
    found = tune(numeric, data, shared, validationIndicatorCol="held", weightCol="weight")
    assert found.summary.decision == "tuned"
    if weight[0] == "1":
        assert found.summary.metrics["validation"]["before"] == pytest.approx(unweighted, rel=1e-12)
    json.dumps(found.summary.asdict(), allow_nan=False)


def test_weights_that_are_nothing_beside_others(df: DataFrame, numeric: PipelineModel, shared: Path) -> None:
    """A batch of theirs alone would divide by next to nothing."""
    data = df.withColumn("weight", F.expr("if(number < 200, 1D, 1e-320D)"))
    options: dict[str, Any] = {"weightCol": "weight", "validationIndicatorCol": "held", "batchSize": 16, "maxEpochs": 1}
    found, zero = (
        tune(numeric, rows, shared, **options).summary.metrics["validation"]
        for rows in (data, data.withColumn("weight", F.expr("if(number < 200, 1D, 0D)")))
    )
    assert found["before"] == pytest.approx(zero["before"], rel=1e-12)
    few = df.withColumn("weight", F.expr("if(number < 10, 1e300D, 1e-300D)"))
    assert "rows, 30 are needed" in tune(numeric, few, shared, **options).summary.reason


def test_weights_that_are_all_0(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    refused("0 train rows of weight > 0", numeric, df.withColumn("weight", F.lit(0)), folder, weightCol="weight")


def test_no_rows(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    refused("the data have no rows", numeric, df.where("number < 0"), folder)
    refused("the data have no rows", numeric, df.where("number < 0"), folder, timeCol="number")
    vectors = numeric.transform(df).drop("prediction")
    refused("the data have no rows", numeric.stages[3], vectors.where("number < 0"), folder)
    nulls = vectors.withColumn("components", F.when(F.lit(False), F.col("components")))
    refused("column 'components' holds null in all rows", numeric.stages[3], nulls, folder)


# DataFrames and sessions ----------------------------------------------------------------------------------------------


def test_a_stream(spark: SparkSession, numeric: PipelineModel, folder: Path) -> None:
    stream = (
        spark.readStream.format("rate")
        .load()
        .selectExpr(*(f"cast(value AS double) AS {c}" for c in [*NUMBERS, "riders"]))
    )
    sentence = "the DataFrame is a stream, which has no end.*write it to a table and pass the table"
    refused(sentence, numeric, stream, folder)
    pipeline = Pipeline(
        stages=[VectorAssembler(inputCols=NUMBERS, outputCol="x"), LinearRegression(featuresCol="x", labelCol="riders")]
    )
    refused(sentence, pipeline, stream, folder)
    assert not folder.exists()


@pytest.mark.parametrize("data", [None, pd.DataFrame({"temp": [1.0]}), "data.parquet"], ids=lambda d: type(d).__name__)
def test_no_dataframe_of_sparks(numeric: PipelineModel, folder: Path, data: Any) -> None:
    kind, way = {
        "NoneType": ("NoneType", "create one with spark.createDataFrame"),
        "str": ("str", "load one with spark.read"),
        "DataFrame": ("pandas.DataFrame", "create one with spark.createDataFrame"),
    }[type(data).__name__]
    refused(f"the dataset of fit.. must be a Spark DataFrame, got {kind}: {way}", numeric, data, folder)
    with pytest.raises(InputError, match=f"the rows of verify.. must be a Spark DataFrame, got {kind}: {way}"):
        sparkdiff.verify(numeric, data)
    if data is not None:
        with pytest.raises(InputError, match=f"referenceData must be a Spark DataFrame, got {kind}: {way}"):
            FineTuner(numeric, referenceData=data)
        with pytest.raises(InputError, match=f"schema.* must be a Spark DataFrame, got {kind}"):
            sparkdiff.translate(numeric, schema=data)
        with pytest.raises(InputError, match=f"schema.* must be a Spark DataFrame, got {kind}"):
            sparkdiff.plan(numeric, schema=data)


def test_a_tuner_takes_its_pipeline_without_a_name(numeric: PipelineModel) -> None:
    assert FineTuner(numeric, maxEpochs=3).getPipeline() is numeric
    with pytest.raises(
        InputError, match=r"only the pipeline without a name, but got str as well: FineTuner.model, label"
    ):
        FineTuner(numeric, "riders")


def test_what_is_no_network(numeric: PipelineModel, df: DataFrame) -> None:
    for call in (lambda: sparkdiff.write_back(numeric, {}), lambda: sparkdiff.verify(numeric, df, network={})):  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"network must be the result of translate.model., got dict"):
            call()


@pytest.mark.parametrize("option", ["freeze", "reference", "target", "unfreeze"])
def test_names_that_are_none_for_a_plan(numeric: PipelineModel, option: str) -> None:
    for wrong in (5, [5], None):
        with pytest.raises(InputError, match=f"The '{option}' option must be a list of"):
            sparkdiff.plan(numeric, **{option: wrong})


def test_a_query_that_fails(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    refused(
        "Spark failed.*: .*no such thing",
        numeric,
        df.withColumn("temp", F.raise_error(F.lit("no such thing")).cast("double")),
        folder,
    )
    refused(
        "Spark failed while .*: .*no such thing",
        numeric,
        df.withColumn("part", F.raise_error(F.lit("no such thing")).cast("string")),
        folder,
        guardCols=["part"],
    )
    udf = F.udf(lambda x: x / 0, "double")
    refused(
        "Spark failed.*ZeroDivisionError|Spark failed.*division by zero",
        numeric,
        df.withColumn("temp", udf("temp")),
        folder,
    )
    assert list(folder.iterdir()) == [] if folder.exists() else True


def test_two_columns_of_one_name(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    sentence = f"{numeric.stages[0].uid} reads 'temp', but 2 columns match, 'temp', 'temp': rename all but one"
    refused(sentence, numeric, df.select("*", F.lit(1.0).alias("temp")), folder)


def test_a_stage_that_drops_what_training_needs(df: DataFrame, folder: Path) -> None:
    head = LinearRegression(featuresCol="x", labelCol="riders", weightCol="weight", maxIter=1)
    fitted = head.fit(df.withColumn("x", array_to_vector(F.array("temp"))))
    rest = [VectorAssembler(inputCols=["square"], outputCol="x"), fitted]
    for drops in ("riders", "weight"):
        kept = ", ".join(f"`{c}`" for c in df.columns if c != drops)
        sql = SQLTransformer(statement=f"SELECT DISTINCT {kept}, temp * temp AS square FROM __THIS__")
        sentence = rf"{sql.uid} drops column '{drops}', which training needs; keep all columns \(SELECT \*, ...\)"
        refused(sentence, PipelineModel([sql, *rest]), df, folder)
    for columns in ("*", "temp"):  # what a plain selection drops stays in training
        keeps = SQLTransformer(statement=f"SELECT {columns}, temp * temp AS square FROM __THIS__")
        tune(PipelineModel([keeps, *rest]), df, folder, maxEpochs=1)
    # what it makes may be the label and the weight; what nobody has is said to be so
    makes = SQLTransformer(statement="SELECT *, temp * temp AS square, log1p(riders) AS few, 2 AS w FROM __THIS__")
    made = tune(PipelineModel([makes, *rest]), df, folder, maxEpochs=1, labelCol="few", weightCol="w")
    assert made.summary.options["labelCol"] == "few"
    sentence = r"weightCol='ww' is not a column of the data\. Did you mean 'w'"
    refused(sentence, PipelineModel([makes, *rest]), df, folder, labelCol="few", weightCol="ww")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            "s3://bucket/caches",
            "cacheDir='s3://bucket/caches' can't be used, as Spark has no file system for it .*spark.jars",
        ),
        ("dbfs:/caches", "cacheDir='dbfs:/caches' can't be used"),
        ("{file}", "cacheDir='.*' cannot be used: "),
        ("{file}/below", "cacheDir='.*' cannot be used: "),
    ],
)
def test_a_folder_for_caches_that_is_none(
    df: DataFrame, numeric: PipelineModel, tmp_path: Path, given: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=sentence):
        FineTuner(pipeline=numeric, cacheDir=given.format(file=tmp_path / "file")).fit(df)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# Options and losses ---------------------------------------------------------------------------------------------------


def test_options_are_checked_when_set_and_when_used(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    for options, sentence in (
        ({"maxEpoch": 3}, "unknown option 'maxEpoch'. Did you mean 'maxEpochs'"),
        ({"maxEpochs": "3"}, "'maxEpochs' option must be a whole number. Got '3' instead"),
        ({"guard": 2.0}, r"'guard' option must be in \(0, 1.*Got 2.0 instead"),
        ({"groupCol": "user", "timeCol": "when"}, "groupCol='user' and timeCol='when' exclude each other"),
        (
            {"validationIndicatorCol": "held", "validationFraction": 0.3},
            "validationIndicatorCol='held' and validationFraction=0.3 exclude each other",
        ),
    ):
        with pytest.raises(InputError, match=sentence):
            FineTuner(pipeline=numeric, **options)
    tuner = FineTuner(pipeline=numeric, cacheDir=str(folder)).setGroupCol("user").setTimeCol("when")  # one by one
    with pytest.raises(InputError, match="exclude each other: set one of them"):
        tuner.fit(df)
    with pytest.raises(InputError, match="'maxEpochs' option must be in"):
        tuner.fit(df, {tuner.timeCol: None, tuner.maxEpochs: 0})
    assert not folder.exists()


def wide(outputs: Any, label: Any, weight: Any) -> Any:
    return outputs["prediction"][:, None]


def mean(outputs: Any, label: Any, weight: Any) -> Any:
    return outputs["prediction"].mean()


@pytest.mark.parametrize(
    ("head", "options", "sentence"),
    [
        (
            "logistic",
            {"loss": "poisson"},
            "loss='poisson' on LogisticRegression would change the meaning of its probabilities.*'logLoss'",
        ),
        ("linear", {"loss": "logLoss"}, "loss='logLoss' needs probabilities, which LinearRegression doesn't output"),
        ("linear", {"metric": "logLoss"}, "metric='logLoss': loss='logLoss' needs probabilities"),
        ("linear", {"loss": "hinge"}, "loss='hinge' needs classes, which LinearRegression doesn't predict"),
        ("multinomial", {"metric": "areaUnderROC"}, "needs two classes, but LogisticRegression predicts 3 classes"),
        ("multinomial", {"loss": "auc"}, "loss='auc' ranks two classes, but LogisticRegression predicts 3"),
        (
            "logistic",
            {"loss": "cost", "lossParams": {"costs": [[0, 1, 2], [1, 0, 2]]}},
            "needs costs, a list of 2 rows .* of 2 numbers >= 0 .*. Got ",
        ),
        ("multinomial", {"lossParams": {"classWeights": [1, 2]}}, "must be 'balanced' or a list of 3 numbers >= 0"),
        ("logistic", {"loss": {"logLoss": 1, "mmce": 1}}, "is not a mean over rows, .*set metric"),
        (
            "logistic",
            {"penalties": {"parityGap": {"hour": 1}}},
            r"parityGap names \['hour'\], but only the columns of guardCols are kept",
        ),
        ("linear", {"lossParams": {"delta": 1.0}}, r"lossParams \['delta'\] are unknown to the loss 'squared'"),
        ("linear", {"loss": "quantile", "lossParams": {"tau": 2.0}}, "Got 2.0 instead"),
        ("linear", {"loss": mean}, "the loss .*:mean is not a mean over rows, .*set metric"),
    ],
)
def test_a_loss_that_the_predictor_refuses(
    networks: dict[str, Network], head: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        resolve_objectives(Options.of(options), networks[head], ANY_LABEL)


def test_a_loss_that_the_predictor_refuses_in_a_fit(
    df: DataFrame, heads: dict[str, PipelineModel], shared: Path
) -> None:
    for options, sentence in (
        ({"loss": "huber"}, "loss='huber' needs lossParams={'delta': > 0}.*Got None instead"),
        (
            {"loss": wide},
            r"the loss .*:wide returned shape \(\d+, 1\); it must be one unweighted value per row, \(\d+,\)",
        ),
    ):
        refused(sentence, heads["linear"], df, shared, **options)
