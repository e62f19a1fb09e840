"""One cache serves a pipeline and all that begins with its stages; what has other stages in front, or other rows, has its own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import GBTClassifier, LogisticRegression
from pyspark.ml.feature import Imputer, OneHotEncoder, SQLTransformer, StandardScaler, StringIndexer, VectorAssembler
from pyspark.sql import DataFrame, SparkSession

from sparkdiff import FineTuner
from sparkdiff.data.cache import root
from sparkdiff.data.splits import TRAIN, VALIDATION
from sparkdiff.fine_tuning.task import FitResults
from sparkdiff.improvement.arm_context import ArmContext, Measurement, measure, measure_original
from sparkdiff.improvement.arms.growing import IMPORT
from sparkdiff.improvement.budget import Limit
from sparkdiff.options import Options
from sparkdiff.pipeline.cut import within
from tests.support.arm_contexts import prepare_context

ROWS = 900


@pytest.fixture(scope="module")
def rows(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> DataFrame:
    """Two classes that a product of two columns decides, with nulls, NaN, negative zeros and a rare category."""
    r = np.random.default_rng(4)
    x = r.normal(size=(ROWS, 3))
    x[:7, 0], x[7:11, 1] = np.nan, -0.0
    kind = np.where(r.random(ROWS) < 0.01, "rare", r.choice(["a", "b", "c"], ROWS))
    y = (x[:, 1] * x[:, 2] + 0.3 * r.normal(size=ROWS) > 0).astype(float)
    third = pa.array(x[:, 2], mask=np.arange(ROWS) % 97 == 0)
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(pa.table({"one": x[:, 0], "Two": x[:, 1], "three": third, "kind": kind, "label": y}), path)
    return spark.read.parquet(f"file://{path}")


def pipeline(*front: Any, invalid: str = "keep") -> Pipeline:
    numbers = ["one_", "two_", "three_"]
    return Pipeline(
        stages=[
            *front,
            Imputer(inputCols=["one", "Two", "three"], outputCols=numbers),
            StringIndexer(inputCol="kind", outputCol="index", handleInvalid=invalid),
            OneHotEncoder(inputCols=["index"], outputCols=["hot"], handleInvalid="keep"),
            VectorAssembler(inputCols=[*numbers, "hot"], outputCol="plain"),
            StandardScaler(inputCol="plain", outputCol="features", withMean=True),
            LogisticRegression(regParam=0.1, maxIter=5),
        ]
    )


@pytest.fixture(scope="module")
def model(rows: DataFrame) -> PipelineModel:
    return pipeline().fit(rows)


def contexts(model: Any, rows: DataFrame, folder: Path) -> ArmContext:
    return prepare_context(
        model, rows, settings={"arms": ["import", "finetune"]}, cacheDir=str(folder), maxEpochs=2, recipe="fast"
    )


def caches(folder: Path) -> int:
    return len(list(folder.glob("*/manifest.json")))


def alike(context: ArmContext, found: Measurement) -> bool:
    """Whether the margins are those of the context up to rounding: the order of rows in a batch decides the last bits."""
    return torch.allclose(context.start.recorded.margins, found.recorded.margins, rtol=1e-12, atol=1e-12)


def with_stages(model: PipelineModel, *changed: Any) -> PipelineModel:
    """The pipeline with these stages in the place of those of their class, or without those that are given as a class."""
    gone = tuple(c if isinstance(c, type) else type(c) for c in changed)
    new = {type(c): c for c in changed if not isinstance(c, type)}
    return PipelineModel([new.get(type(s), s) for s in model.stages if type(s) in new or not isinstance(s, gone)])


@pytest.mark.nightly
def test_joined_trees_and_their_training_read_one_cache(model: PipelineModel, rows: DataFrame, tmp_path: Path) -> None:
    context = contexts(model, rows, tmp_path)
    assert caches(tmp_path) == 1
    steps = [IMPORT.run(context, number, Limit(60.0, None), ()) for number in (0, 1)]
    assert caches(tmp_path) == 1
    trees, *more = [c for s in steps for c in s.candidates]
    assert len(more) in (1, 2) and all(c.found.parity is not None for c in (trees, *more))
    # The same pipeline on rows of its own, in a cache of its own.
    alone = contexts(trees.model, rows, tmp_path / "own")
    assert torch.equal(alone.start.recorded.keys, trees.found.recorded.keys)
    apart = alone.start.scores[VALIDATION].blocks - trees.found.scores[VALIDATION].blocks
    assert float(apart.abs().max()) < 1e-9
    assert (
        measure(context, IMPORT.make(context, trees.making.settings)).scores[VALIDATION].mean
        < context.start.scores[VALIDATION].mean
    )
    assert caches(tmp_path) == 1


@pytest.mark.nightly
def test_what_has_other_stages_in_front_has_a_cache_of_its_own(
    model: PipelineModel, rows: DataFrame, tmp_path: Path
) -> None:
    context = contexts(model, rows, tmp_path)
    other = pipeline().fit(rows.where("one > 0")).stages
    for k, changed in enumerate(other[:2], 1):  # torch imputes; Spark indexes
        found = measure(context, with_stages(model, changed))
        assert caches(tmp_path) == k
        alone = contexts(with_stages(model, changed), rows, tmp_path / f"own{k}")
        assert alike(alone, found)


def test_torch_has_the_candidates_weights_despite_the_cache(
    model: PipelineModel, rows: DataFrame, tmp_path: Path
) -> None:
    """The scaler trains, so it is no part of the cache, which yet has the features that the original's scaler makes."""
    context = contexts(model, rows, tmp_path)
    scaler = pipeline().fit(rows.where("one > 0")).stages[4]
    found = measure(context, with_stages(model, scaler))
    alone = contexts(with_stages(model, scaler), rows, tmp_path / "own")
    assert caches(tmp_path) == 1
    assert alike(alone, found) and not alike(context, found)


@pytest.mark.nightly
def test_rows_that_a_stage_drops_and_sql_are_never_shared(rows: DataFrame, tmp_path: Path) -> None:
    skipping = pipeline(invalid="skip").fit(rows.where("kind <> 'rare'"))
    context = contexts(skipping, rows, tmp_path / "skip")
    # The pipeline without the category keeps the rows that the indexer drops.
    front = [skipping.stages[0], VectorAssembler(inputCols=["one_", "two_", "three_"], outputCol="plain")]
    shorter = Pipeline(
        stages=[*front, StandardScaler(inputCol="plain", outputCol="features"), LogisticRegression(maxIter=5)]
    )
    assert within(context.task(shorter.fit(rows)).cut, context.cache_plan.cut) is None
    # The plan of this one does not tell what it does.
    sql = pipeline(SQLTransformer(statement="SELECT *, one * 2 AS more FROM __THIS__ LIMIT 1000000")).fit(rows)
    context = contexts(sql, rows, tmp_path / "sql")
    assert context.cache_plan is context.plan and within(context.plan.cut, context.cache_plan.cut) is None


@pytest.mark.nightly
def test_growth_has_its_own_cache_if_input_is_overwritten(rows: DataFrame, tmp_path: Path) -> None:
    imputer = Imputer(inputCols=["one", "three"], outputCols=["one", "three"])
    assembler = VectorAssembler(inputCols=["one", "Two", "three"], outputCol="features")
    for k, last in enumerate(
        (LogisticRegression(regParam=0.1, maxIter=5), GBTClassifier(maxIter=2, maxDepth=2, seed=0))
    ):
        context = contexts(Pipeline(stages=[imputer, assembler, last]).fit(rows), rows, tmp_path / str(k))
        [trees] = IMPORT.run(context, 0, Limit(60.0, None), ()).candidates
        alone = contexts(trees.model, rows, tmp_path / f"own{k}")
        assert torch.equal(alone.start.recorded.margins, trees.found.recorded.margins)


def test_a_column_may_be_spelled_otherwise_in_another_pipeline(rows: DataFrame, tmp_path: Path) -> None:
    """Without the scaler its other reader's spelling counts."""
    assembled = VectorAssembler(inputCols=["one", "Two"], outputCol="Raw", handleInvalid="keep").transform(
        rows.na.fill(0.0)
    )
    given = assembled.drop("one").na.drop()
    scaler, both = (
        StandardScaler(inputCol="Raw", outputCol="scaled"),
        VectorAssembler(inputCols=["raw", "three"], outputCol="features"),
    )
    model = Pipeline(stages=[scaler, both, LogisticRegression(maxIter=5)]).fit(given)
    context = contexts(model, given, tmp_path)
    assert measure(context, PipelineModel(model.stages[1:])).parity is not None


@pytest.mark.nightly
def test_fold_caches_stay_only_if_later_runs_may_read_them(
    model: PipelineModel, rows: DataFrame, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "pipeline": model,
        "labelCol": "label",
        "numFolds": 3,
        "maxEpochs": 1,
        "recipe": "fast",
        "rowsAreNew": False,
    }
    before = caches(root(Options()))
    FineTuner(**options).fit(rows)
    assert caches(root(Options())) <= before + 2  # of the pipeline itself, and of its refit on all rows
    FineTuner(**options, cacheDir=str(tmp_path)).fit(rows)
    assert caches(tmp_path) >= 4


def test_of_what_may_ship_more_rows_are_compared_with_spark(
    model: PipelineModel, rows: DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparkdiff.improvement.arm_context.FEWER_ROWS", 100)
    explores = contexts(model, rows, tmp_path)
    ships = measure_original(replace(explores, allTrain=True, original=None, shared=FitResults()))
    [fewer, more] = [measure(context, model).parity for context in (explores, ships)]
    assert fewer is not None and more is not None
    edges, every = 100, ships.rows[TRAIN]
    assert 100 <= fewer.rows < 100 + edges and every <= more.rows < every + edges  # none of them twice
