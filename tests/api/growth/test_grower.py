"""Growth through the public interface: plain stages beside those of the user, what is kept, what is refused."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import (
    FeatureHasher,
    HashingTF,
    OneHotEncoder,
    RFormula,
    SQLTransformer,
    StandardScaler,
    StringIndexer,
    Tokenizer,
    VectorAssembler,
)
from pyspark.ml.regression import GBTRegressor, GeneralizedLinearRegression, LinearRegression
from pyspark.ml.tuning import CrossValidatorModel
from pyspark.sql import DataFrame, SparkSession, functions as F

import sparkdiff
from sparkdiff import Grower, GrowerModel, InputError, ParityError
from sparkdiff.data.splits import Source
from sparkdiff.fine_tuning.task import check_runs
from sparkdiff.growth import growth_steps, part_inputs
from sparkdiff.growth.growth_options import GrowthSettings
from sparkdiff.growth.growth_steps import prepare_growth
from sparkdiff.growth.parts import units
from sparkdiff.improvement.arms import growing
from sparkdiff.improvement.budget import Limit
from sparkdiff.jvm import sessions
from sparkdiff.options import Options
from tests.support import plain_spark
from tests.support.arm_contexts import prepare_context

ROWS = 3000
QUICK: dict[str, Any] = {"maxEpochs": 4, "recipe": "fast", "rowsAreNew": True, "numFolds": 0}
WHOLE: dict[str, Any] = {"maxEpochs": 2, "recipe": "fast", "guard": 1}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Numbers x, y, z (with gaps in z), a category, a shop, and labels: `count` has kind x season in it, `many` is linear."""
    random = np.random.default_rng(0)
    x, y, z = random.normal(size=(3, ROWS))
    kind, season, shop = (random.integers(0, k, ROWS) for k in (5, 4, 30))
    cross = random.normal(scale=0.8, size=(5, 4))[kind, season]
    bend, effect = np.where(np.abs(y) > 1, 1.0, 0.0), random.normal(scale=0.7, size=30)[shop]
    margin = 0.4 * x + cross
    chance = 1 / (1 + np.exp(-(x + 2 * bend - 0.5)))
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    columns = {
        "id": np.arange(ROWS),
        "x": x,
        "y": y,
        "z": np.where(random.random(ROWS) < 0.05, np.nan, z),
        "kind": np.array([*"abcde"])[kind],
        "season": np.array(["spring", "summer", "autumn", "winter"])[season],
        "shop": [f"s{s}" for s in shop],
        "count": random.poisson(np.exp(margin)).astype(float),
        "busy": (random.random(ROWS) < chance).astype(float),
        "sales": x + effect + random.normal(scale=0.5, size=ROWS),
        "grade": np.argmax(np.stack([0 * x, 2 * bend, x]) + random.gumbel(size=(3, ROWS)), 0).astype(float),
        "noise": random.poisson(1.0, ROWS).astype(float),
    }
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture(scope="module")
def rows(spark: SparkSession, file: Path) -> DataFrame:
    return spark.read.parquet(f"file://{file}")


LAST = sessions.VERSION >= (4, 0)
"""Whether a last stage can put the columns that were added behind all others."""


def linear(grown: GrowerModel) -> Any:
    """The last linear stage."""
    uid = grown.originalModel.stages[-1].uid
    return next(s for s in grown.pipelineModel.stages if s.uid == uid)


def explored(
    model: PipelineModel, rows: DataFrame, cache: Path, *parts: str, **settings: Any
) -> tuple[Any, Mapping[str, Any]]:
    """The pipeline that a growth makes on the rows that explore, and what its rounds have learned; nothing is proven."""
    given = GrowthSettings.of({"parts": parts, "rounds": 1, "maxLoss": 0, **settings})
    step = growing.grow_and_train(
        prepare_context(model, rows, cacheDir=str(cache), **WHOLE), Limit(None, None), given, "grow", 0
    )
    assert step.candidates, step.says
    return step.candidates[0].model, step.learned


def fitted(rows: DataFrame, last: Any) -> PipelineModel:
    words = ["kind", "season"]
    stages = [
        StringIndexer(inputCols=words, outputCols=[f"{w}_index" for w in words], handleInvalid="keep"),
        OneHotEncoder(inputCols=[f"{w}_index" for w in words], outputCols=[f"{w}_hot" for w in words]),
        VectorAssembler(inputCols=["kind_hot", "season_hot", "x", "y"], outputCol="assembled"),
        StandardScaler(inputCol="assembled", outputCol="scaled", withMean=True),
        last.setFeaturesCol("scaled"),
    ]
    return Pipeline(stages=stages).fit(rows)


@pytest.fixture(scope="module")
def poisson(rows: DataFrame) -> PipelineModel:
    return fitted(rows, GeneralizedLinearRegression(labelCol="count", family="poisson", link="log", regParam=0.001))


@pytest.fixture(scope="module")
def grown(rows: DataFrame, poisson: PipelineModel, tmp_path_factory: pytest.TempPathFactory) -> GrowerModel:
    cache = str(tmp_path_factory.mktemp("grown"))
    limited = {"rounds": 3, "maxServingCost": 2.6, "maxLoss": 0, "maxSeconds": 3000.0}
    return Grower(poisson, parts=("crosses", "shapes"), cacheDir=cache, **limited, **QUICK).fit(rows)


@pytest.mark.nightly
def test_a_planted_cross_is_named_first_and_gained(grown: GrowerModel, poisson: PipelineModel) -> None:
    summary = grown.summary
    assert summary.decision == "grown"
    assert summary.gain > 0.1
    assert not any("parts learned from" in w for w in summary.warnings)
    first = next(r for r in summary.rounds if not r["why"])
    assert first["name"].startswith("kind x season")
    assert summary.parts[0]["kind"] == "crosses"
    assert summary.metrics["validation"]["after"] < summary.metrics["validation"]["before"]  # type: ignore[index]
    cost: Any = summary.servingCost
    assert cost["before"] < cost["after"] <= cost["limit"] == pytest.approx(2.6 * cost["before"])
    assert any(r["why"].startswith("serving would cost") for r in summary.rounds), str(summary)
    assert set(summary.parity) == {"before", "after"}
    text = str(summary)
    assert summary.fineTunedGain is not None and 0 <= summary.fineTunedGain < summary.gain
    assert f"fine-tuned alone: {summary.fineTunedGain:+.2%} at {cost['before']:.2f} us per row" in text
    joined = [r for r in summary.rounds if not r["why"]]
    assert [p["gain"] for p in summary.parts] == [r["gain"] for r in joined]
    assert f"{joined[0]['gain']:+.2%} as it joined" in text
    assert "kind x season" in text
    assert "joined" in text
    assert repr(summary).startswith("<GrowthSummary: grown, ") and "; parts: " in repr(summary)
    assert "kind x season" in summary._repr_html_()


def test_all_stages_are_plain_and_those_of_the_user_stay(grown: GrowerModel, poisson: PipelineModel) -> None:
    new = grown.pipelineModel
    assert type(new) is PipelineModel
    assert new.uid == poisson.uid
    assert all(type(s).__module__.startswith("pyspark.ml.") for s in new.stages)
    uids = [s.uid for s in new.stages]
    assert [uid for uid in uids if uid in {s.uid for s in poisson.stages}] == [s.uid for s in poisson.stages]
    assert type(new.stages[-1]) is (SQLTransformer if LAST else type(poisson.stages[-1]))
    for old in poisson.stages:
        now = next(s for s in new.stages if s.uid == old.uid)
        assert type(now) is type(old)
        assert now._defaultParamMap == old._defaultParamMap
        params = {p.name: v for p, v in now._paramMap.items() if p.name != "featuresCol"}
        assert params == {p.name: v for p, v in old._paramMap.items() if p.name != "featuresCol"}


def test_columns_that_are_added_have_one_prefix_and_stand_last(
    grown: GrowerModel, poisson: PipelineModel, rows: DataFrame
) -> None:
    own, shown = poisson.transform(rows), grown.transform(rows)
    added = [c for c in shown.columns if c not in own.columns]
    assert added and all(c.startswith(f"{poisson.stages[-1].uid}_grown") for c in added)
    assert [c for c in shown.columns if c not in added] == own.columns
    if LAST:
        assert shown.columns == [*own.columns, *added]
    kept = shown.drop(*(c for c in shown.columns if "_grown" in c))  # the line of docs/growing.md
    assert [(f.name, f.dataType, f.nullable) for f in kept.schema] == [
        (f.name, f.dataType, f.nullable) for f in own.schema
    ]


def test_dropping_columns_is_refused_where_spark_cannot(
    poisson: PipelineModel, rows: DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spark 3.5 reads EXCEPT as a difference of two tables."""
    monkeypatch.setattr(sessions, "VERSION", (3, 5))
    grower = Grower(poisson, dropColumns=True)
    for run in (grower.explain, grower.fit):
        with pytest.raises(InputError, match=r"dropColumns=True needs Spark 4\.0 or newer.*EXCEPT"):
            run(rows)
    assert "SQLTransformer" not in str(Grower(poisson).explain(rows))


@pytest.mark.nightly
@pytest.mark.skipif(not LAST, reason="Spark 3.5 has no `* EXCEPT`")
def test_a_last_stage_drops_the_columns_on_request(
    rows: DataFrame, poisson: PipelineModel, shared: Path, tmp_path: Path
) -> None:
    """Serving's own columns stay, an entity's index is dropped, too, and what is grown can be grown again."""
    rows = rows.withColumn("both", F.col("sales") + F.log1p("count"))  # shops have effects, and kind x season
    model = fitted(rows, LinearRegression(labelCol="both"))
    own = model.transform(rows).columns
    first, _ = explored(model, rows, shared, "effects", entityCols=["shop"], dropColumns=True)
    first.write().save(str(tmp_path / "grown"))
    served = PipelineModel.load(str(tmp_path / "grown")).transform(rows.withColumn("more", F.lit(1)))
    assert served.columns == model.transform(rows.withColumn("more", F.lit(1))).columns
    again, _ = explored(first, rows, shared, "crosses", dropColumns=True)
    assert again.transform(rows).columns == own
    assert [type(s) for s in again.stages[-2:]] == [SQLTransformer] * 2
    scorer = sparkdiff.Scorer(again, rows)
    few = rows.limit(20)
    scores = scorer.predict([row.asDict() for row in few.collect()])
    assert [row["prediction"] for row in scores] == pytest.approx(
        [row.prediction for row in again.transform(few).collect()]
    )
    assert not [name for name in scores[0] if "_grown" in name]


@pytest.mark.nightly
def test_several_outputs_and_vectors_without_a_size_grow(
    spark: SparkSession, rows: DataFrame, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows to learn from tell the size of their vectors, rows to come do not."""
    monkeypatch.setattr(units, "SIZES", units.SIZES[:1])
    assembler = VectorAssembler(inputCols=["x", "y"], outputCol="features")
    named = assembler.transform(rows).select("features", "grade", "kind", "shop")
    softmax = LogisticRegression(labelCol="grade", family="multinomial", regParam=1e-3)
    model = PipelineModel([softmax.fit(named)])
    found, learned = explored(model, named, shared, "units", entityCols=["shop"])
    said = "entityCols=('shop',) has no effect: units read no entities, and no other parts are tried"
    assert said in learned["warnings"]
    assert "units" in learned["fields"]["parts"][0]["name"]
    assert not any("shop" in s.uid for s in found.stages), "an indexer is there only where a part reads it"
    vectors = [row.features for row in named.limit(20).collect()]
    bare = spark.createDataFrame([(v,) for v in vectors], ["features"])
    assert "ml_attr" not in bare.schema["features"].metadata
    labels = [row.prediction for row in found.transform(bare).collect()]
    assert len(labels) == 20 and {0.0, 1.0, 2.0} >= {*labels} and len({*labels}) > 1


@pytest.mark.nightly  # its stages are of pyspark.ml alone, and other tests serve each kind of them saved and loaded
def test_it_is_served_without_torch_and_sparkdiff(
    grown: GrowerModel, poisson: PipelineModel, rows: DataFrame, file: Path, tmp_path: Path
) -> None:
    grown.pipelineModel.write().save(f"file://{tmp_path}/grown")
    [served] = plain_spark.predictions([tmp_path / "grown"], file)
    here = [r.prediction for r in grown.transform(rows).orderBy("id").select("prediction").collect()]
    np.testing.assert_allclose(served, here, rtol=1e-12)
    before = [r.prediction for r in poisson.transform(rows).orderBy("id").select("prediction").collect()]
    assert not np.allclose(served, before, rtol=0.01)


@pytest.mark.nightly
def test_parts_learn_from_the_rows_that_there_is_room_for(
    rows: DataFrame, poisson: PipelineModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows that choose are among them; all training rows train the whole, and all growths of a run take the same ones."""
    monkeypatch.setattr(part_inputs, "LARGEST", 250_000)
    taken: list[Any] = []
    monkeypatch.setattr(growth_steps, "table_of", lambda *a: taken.append(part_inputs.table_of(*a)) or taken[-1])
    settings, no_limit = GrowthSettings(parts=("crosses",), rounds=1), Limit(None, None)
    context = prepare_context(poisson, rows, cacheDir=str(tmp_path), runId="mine", **WHOLE)
    context = replace(context, folder=tmp_path / "mine")
    step = growing.grow_and_train(context, no_limit, settings, "grow", 0)
    assert step.candidates[0].name.startswith("+ kind x season"), step.candidates[0].name
    [table] = taken
    assert 300 < len(table.train) < 0.8 * table.most
    assert table.most + len(table.validation) == ROWS
    [warning] = [w for w in step.learned["warnings"] if "parts learned from" in w]
    assert warning.startswith(f"parts learned from {len(table.train):,} of {table.most:,} training rows")
    monkeypatch.setattr(part_inputs, "LARGEST", 200_000)  # as on a machine with less memory, on which the run goes on
    growing.grow_and_train(replace(context, fold=0), no_limit, settings, "grow", 0)
    assert torch.equal(taken[1].train.label, table.train.label)
    monkeypatch.setattr(part_inputs, "LARGEST", 20_000)
    with pytest.raises(InputError, match=r"validation rows take .* GiB of memory.*hold out fewer rows"):
        growing.grow_and_train(replace(context, folder=tmp_path / "another"), no_limit, settings, "grow", 0)


def test_sparse_rows_take_no_more_than_the_room_that_there_is(rows: DataFrame, shared: Path) -> None:
    """However well their files are compressed: the words of a row are many and all the same."""
    room = 1_000_000
    text = "concat_ws(' ', transform(sequence(1, 100), i -> i * i + (id * i) % 3))"
    texts = rows.where("id < 1000").select("sales", F.expr(text).alias("text"))
    split = [
        Tokenizer(inputCol="text", outputCol="words"),
        HashingTF(inputCol="words", outputCol="f", numFeatures=1024),
    ]
    last = LinearRegression(featuresCol="f", labelCol="sales", regParam=0.1, maxIter=2)
    start = prepare_context(Pipeline(stages=[*split, last]).fit(texts), texts, cacheDir=str(shared))
    there = prepare_growth(start.model, start.options, GrowthSettings(), start.sources, None)
    with start.open_run(there.task) as run:
        table = part_inputs.table_of(run, there.known, room)
    held = [
        x for s in (table.train, table.validation) for x in (s.features.indices, s.features.values, s.label, s.margin)
    ]
    assert 0.8 * room < sum(x.numel() * x.element_size() for x in held) < room
    assert len(table.train) < table.most


@pytest.mark.nightly
def test_a_grower_and_its_model_can_be_saved(grown: GrowerModel, rows: DataFrame, tmp_path: Path) -> None:
    grown.write().save(f"file://{tmp_path}/model")
    again = GrowerModel.load(f"file://{tmp_path}/model")
    assert again.summary.asdict() == grown.summary.asdict()
    assert type(again.summary) is type(grown.summary)
    assert again.uid == grown.uid
    assert again.getParts() == ["crosses", "shapes"]
    assert linear(again).coefficients == linear(grown).coefficients
    grower = Grower(grown.originalModel, labelCol="count", rounds=2, parts=["units"], maxServingCost=3.0)
    grower.write().save(f"file://{tmp_path}/grower")
    loaded = Grower.load(f"file://{tmp_path}/grower")
    assert loaded.settings() == grower.settings()
    assert loaded.options() == grower.options()


CASES = {
    "logistic": (lambda: LogisticRegression(labelCol="busy", regParam=1e-3), "shapes", "y"),
    "least squares": (lambda: LinearRegression(labelCol="sales"), "effects", "shop"),
}


@pytest.mark.nightly  # the other tests of this file grow a Poisson regression, least squares and several outputs
@pytest.mark.parametrize("name", CASES)
def test_every_linear_stage_can_be_grown(name: str, rows: DataFrame, shared: Path) -> None:
    make, part, word = CASES[name]
    found, learned = explored(fitted(rows, make()), rows, shared, part, entityCols=["shop"])
    assert word in learned["fields"]["parts"][0]["name"]
    own = {s.uid for s in found.stages}
    assert any("shop" in uid for uid in own) == (name == "least squares"), (
        "an indexer is there only where a part reads it"
    )
    assert found.transform(rows).select("prediction").distinct().count() > 1


@pytest.mark.nightly  # with a last stage that drops the columns: test_a_last_stage_drops_the_columns_on_request
def test_a_grown_pipeline_can_be_grown_again(rows: DataFrame, shared: Path) -> None:
    rows = rows.withColumn("both", F.col("sales") + F.log1p("count"))  # shops have effects, and kind x season
    model = fitted(rows, LinearRegression(labelCol="both"))
    first, _ = explored(model, rows, shared, "effects", entityCols=["shop"])
    again, _ = explored(first, rows, shared, "crosses")
    uids = [s.uid for s in again.stages]
    assert len(set(uids)) == len(uids) > len(first.stages) > len(model.stages)
    assert again.transform(rows).count() == ROWS


@pytest.mark.nightly  # the same as fine-tuned: test_searches
def test_a_last_stage_that_a_search_has_chosen_grows_within_it(
    rows: DataFrame, poisson: PipelineModel, shared: Path
) -> None:
    searched = PipelineModel([*poisson.stages[:-1], CrossValidatorModel(poisson.stages[-1], [1.0])])
    found, _ = explored(searched, rows, shared, "crosses")
    last: Any = found.stages[-1]
    assert type(last) is CrossValidatorModel
    assert (last.uid, last.avgMetrics) == (searched.stages[-1].uid, [1.0])
    assert poisson.stages[-1].uid in [s.uid for s in last.bestModel.stages[-2:]]
    assert found.transform(rows).select("prediction").distinct().count() > 100


@pytest.mark.nightly
def test_a_row_that_the_pipeline_serves_is_served_when_grown(rows: DataFrame, shared: Path) -> None:
    """FeatureHasher takes null, which no training row has."""
    hasher = FeatureHasher(inputCols=["kind", "season", "x"], categoricalCols=["x"], outputCol="hashed", numFeatures=16)
    numbers = VectorAssembler(inputCols=["y"], outputCol="numbers")
    whole = VectorAssembler(inputCols=["hashed", "numbers"], outputCol="features")
    model = Pipeline(stages=[hasher, numbers, whole, LinearRegression(labelCol="sales", regParam=0.01)]).fit(rows)
    found, learned = explored(model, rows, shared, "crosses", "shapes", rounds=2)
    assert any(re.search(r"\bx\b", part["name"]) for part in learned["fields"]["parts"]), "a part reads what has a gap"
    gap = rows.limit(1).withColumn("x", F.lit(None).cast("double"))
    assert model.transform(gap).first().prediction is not None
    [row] = found.transform(gap).select("prediction").collect()
    assert np.isfinite(row.prediction)


@pytest.mark.nightly
def test_what_a_formula_drops_on_its_way_is_not_read(rows: DataFrame, shared: Path) -> None:
    """An RFormula indexes texts in columns of its own, which no later stage sees."""
    formula = RFormula(formula="sales ~ x + y + kind + season", featuresCol="features", labelCol="label")
    model = Pipeline(stages=[formula, LinearRegression(regParam=20.0)]).fit(rows)
    found, _ = explored(model, rows, shared, "crosses", "shapes")
    assert found.transform(rows).where("prediction is not null").count() == ROWS
    broken = PipelineModel([model.stages[0], VectorAssembler(inputCols=["no such"], outputCol="more")])
    with pytest.raises(ParityError, match=r"Spark can't run the pipeline that was made .*no such"):
        check_runs(broken, rows)


@pytest.mark.nightly
def test_entities_that_training_rows_lack_are_warned_of(
    rows: DataFrame, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows that lack one are counted, as they all train the whole, also where parts learn from a sample of them.

    And to Spark's indexer a shop that is null and one that is unknown are the same.
    """
    monkeypatch.setattr(part_inputs, "LARGEST", 250_000)
    some = rows.withColumn("shop", F.when(F.col("id") % 3 > 0, F.col("shop")))
    model = fitted(rows, LinearRegression(labelCol="sales"))
    found, learned = explored(model, some, shared, "effects", entityCols=["shop"])
    assert any("parts learned from" in w for w in learned["warnings"])
    [warning] = [w for w in learned["warnings"] if "have no shop" in w]
    assert int(warning.split()[0].replace(",", "")) == pytest.approx(0.8 * ROWS / 3, rel=0.1)
    known = some.where("shop is not null").limit(1)
    unknown, null = (known.withColumn("shop", F.lit(v).cast("string")) for v in ("new", None))
    [one, other] = found.transform(unknown.unionByName(null)).select("prediction").collect()
    assert one == other


def test_rows_that_the_pipeline_drops_are_not_grown_on(rows: DataFrame, poisson: PipelineModel) -> None:
    """Whatever drops them, in front of the last linear stage or behind it."""
    skip = {"handleInvalid": "skip"}
    first = StringIndexer(inputCol="shop", outputCol="some", **skip).fit(rows.where("shop < 's2'"))
    last = VectorAssembler(inputCols=["z"], outputCol="seen", **skip)
    model = PipelineModel([first, *poisson.stages, last])
    start = prepare_growth(model, Options(), GrowthSettings(entityCols=("kind",)), [Source(rows)], None)
    data = start.task.cut.transform(rows)
    assert data.count() == model.transform(rows).count() < rows.where("shop < 's2'").count()


def test_wrong_use_is_named(rows: DataFrame, poisson: PipelineModel, shared: Path) -> None:
    with pytest.raises(InputError, match=r"parts names an unknown kind 'unit'\. Did you mean 'units'"):
        Grower(poisson, parts=["unit"])
    with pytest.raises(
        InputError, match=r"rounds.*Got 0 instead.*unknown option 'roundz'|unknown option 'roundz'.*rounds"
    ):
        Grower(poisson, rounds=0, roundz=3)
    assert Grower(poisson).options().numFolds == "auto" and Grower(poisson, numFolds=5).options().numFolds == 5
    with pytest.raises(InputError, match=r"entityCols='shops' is not a column of the data\. Did you mean 'shop'"):
        Grower(poisson, entityCols=["shops"], cacheDir=str(shared)).fit(rows)
    with pytest.raises(InputError, match="entityCols: 'count' is the labelCol"):
        Grower(poisson, entityCols=["count"], cacheDir=str(shared)).fit(rows)
    names = StringIndexer(inputCol="season", outputCol="label").fit(rows)
    named = PipelineModel([names, *fitted(rows, LogisticRegression(labelCol="busy")).stages])
    with pytest.raises(
        InputError, match="entityCols: labelCol='label' is made of 'Season', so it cannot be an entity column"
    ):
        Grower(named, labelCol="label", entityCols=["Season"], cacheDir=str(shared)).fit(rows)
    with pytest.raises(InputError, match="penalties: monotone is not possible with Grower"):
        Grower(poisson, penalties={"monotone": {"x": 1.0}}, cacheDir=str(shared)).fit(rows)
    trees = fitted(rows, GBTRegressor(labelCol="count", maxIter=2))
    with pytest.raises(
        InputError, match=r"GBTRegressionModel .* is no linear stage.*put its margin in front of a linear stage"
    ):
        Grower(trees, cacheDir=str(shared)).fit(rows)
    with pytest.raises(InputError, match=r"maxServingCost=1\.01 leaves .* us per row"):
        Grower(poisson, maxServingCost=1.01, cacheDir=str(shared)).fit(rows)
    few = rows.where("id < 40")
    for data, options, words in ((few, {}, "rows, 30 are"), (rows, {"groupCol": "shop"}, "groups, 30 are")):
        kept = Grower(poisson, cacheDir=str(shared), numFolds=2, **options).fit(data)
        assert kept.pipelineModel is poisson and words in kept.summary.reason
        assert not kept.summary.rounds


def test_explain_tells_what_may_join_and_adds_no_other_stage(
    grown: GrowerModel, poisson: PipelineModel, rows: DataFrame
) -> None:
    text = str(Grower(poisson, parts=("crosses", "shapes"), entityCols=["shop"], maxServingCost=3).explain(rows))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert f"beside its {poisson.stages[-1].numFeatures} features in 'scaled'" in text
    assert {"kind category with 6 values", "x number", "shop entity"} <= {*lines}
    assert not [line for line in lines if line.startswith(("units", "trees", "z "))]
    told = {name for line in text.splitlines() for name in line.replace(",", " ").split()}
    own = {s.uid for s in poisson.stages}
    assert {type(s).__name__ for s in grown.pipelineModel.stages if s.uid not in own} <= told
    assert "limit" in lines[-1] and "no limit" not in lines[-1]
    with pytest.raises(InputError, match=r"entityCols='shops' is not a column of the data\. Did you mean 'shop'"):
        Grower(poisson, entityCols=["shops"]).explain(rows)
    with pytest.raises(InputError, match=r"isn't fitted.*explain.. with the fitted pipeline"):
        Grower(Pipeline(stages=[])).explain(rows)


def test_names_are_public() -> None:
    assert {"Grower", "GrowerModel", "GrowthSummary"} <= set(sparkdiff.__all__)
