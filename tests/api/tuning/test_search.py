"""`Search` on small data: plain Spark out, fresh rows decide, what cannot be is named before anything runs."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import (
    BinaryClassificationEvaluator,
    Evaluator,
    MulticlassClassificationEvaluator,
    RegressionEvaluator,
)
from pyspark.ml.feature import (
    PCA,
    Bucketizer,
    Imputer,
    Normalizer,
    SQLTransformer,
    StandardScaler,
    VectorAssembler,
)
from pyspark.ml.functions import array_to_vector, vector_to_array
from pyspark.ml.regression import GBTRegressor, LinearRegression, RandomForestRegressor
from pyspark.sql import DataFrame, SparkSession, functions as F

import sparkdiff
from sparkdiff import Events, InputError, Search, SearchModel, alternatives, choice, integer, loguniform, uniform
from sparkdiff.search import winner_comparison
from sparkdiff.search.alternatives import with_choices
from sparkdiff.search.pruning import resources_of
from sparkdiff.search.search_options import Settings
from sparkdiff.search.search_space import SearchSpace
from sparkdiff.search.search_summary import decision_and_reason
from sparkdiff.search.splitting import DividedRows, assign_splits, check_rows, divide_rows
from sparkdiff.search.winner_comparison import Comparison, compare, decide
from sparkdiff.tuning import cached_rows
from sparkdiff.tuning.evaluator_metrics import judge_of
from tests.support.small_data import NUMBERS, QUICK


@pytest.fixture(scope="module")
def rows(df: DataFrame) -> Iterator[DataFrame]:
    data = df.coalesce(1).cache()
    data.count()
    yield data
    data.unpersist()


def parts(**head: Any) -> tuple[Pipeline, dict[str, Any]]:
    """A pipeline whose default sees one component of four, and its stages."""
    assembler = VectorAssembler(inputCols=NUMBERS, outputCol="f")
    std = StandardScaler(inputCol="f", outputCol="s")
    pca = PCA(inputCol="s", outputCol="x", k=1)
    last = LogisticRegression(featuresCol="x", labelCol="rain", **head)
    pipeline = Pipeline(stages=[assembler, alternatives(std, None), pca, last])
    return pipeline, {"std": std, "pca": pca, "head": last}


@pytest.fixture(scope="module")
def task() -> Search:
    pipeline, s = parts()
    space = {
        s["head"].regParam: loguniform(1e-5, 1),
        s["pca"].k: integer(2, 4),
        s["std"].withMean: choice(True, False),
        s["head"].family: ["auto", "multinomial"],
    }
    return Search(
        pipeline,
        space=space,
        evaluator=BinaryClassificationEvaluator(labelCol="rain"),
        numTrials=5,
        sampler="random",
        seed=1,
        numFolds=0,
    )


@pytest.fixture(scope="module")
def found(task: Search, rows: DataFrame) -> SearchModel:
    return task.fit(rows)


def test_the_winner_is_plain_spark_compared_on_fresh_rows(found: SearchModel, rows: DataFrame, tmp_path: Path) -> None:
    assert type(found.bestModel) is PipelineModel is type(found.pipelineModel)
    assert {type(stage).__module__.partition(".")[0] for stage in found.bestModel.stages} == {"pyspark"}
    summary, trials = found.summary, found.trials
    assert summary.decision == "winner" and summary.tested and summary.p is not None and summary.p < 0.025
    assert summary.trials == len(trials) == 5 and sum(summary.rows.values()) == rows.count()
    assert summary.validation == trials["areaUnderROC"].max() == trials["areaUnderROC"][summary.number]
    assert summary.optimism == summary.validation - summary.fresh["winner"]
    assert summary.fresh["winner"] > 0.8 > summary.fresh["default"] + 0.2
    assert found.paretoFront["trial"].tolist() == [summary.number]
    chose = trials["stage of s"] != "StandardScaler"
    assert trials["StandardScaler.withMean"][chose].isna().all()  # asked only where the scaler is chosen
    for text in ("winner: on the fresh rows the winner is better than chance explains", "areaUnderROC", "optimism"):
        assert text in str(summary)
    assert repr(summary).startswith("<SearchSummary: winner, areaUnderROC 0.") and len(repr(summary)) < 200
    assert "<strong>winner: on the fresh rows" in summary._repr_html_()
    assert repr(found).startswith("<SearchModel: winner, areaUnderROC 0.") and str(found).startswith(str(summary))
    summary.toHTML(tmp_path / "report.html")
    assert "All trials" in (tmp_path / "report.html").read_text()
    assert "records" not in summary.toDict() and summary.records == found.records


def parts_of(data: DataFrame, split: Settings) -> list[DividedRows]:
    """The rows that explore, and those of each fold that proves."""
    _, division = divide_rows(data, split)
    explores, proves = division.boundaries
    return [
        assign_splits(division.explores, split, explores),
        *(assign_splits(sources, split, proves) for sources in division.proves),
    ]


def test_fresh_rows_are_apart_and_winners_fit_training_rows(task: Search, found: SearchModel, rows: DataFrame) -> None:
    explores, proves = parts_of(rows, Settings(validationFraction=0.2, testFraction=0.2, seed=1))
    train, validation = explores.part("train"), explores.part("validation")
    fresh = proves.part("test")
    numbers = [{row[0] for row in part.select("number").collect()} for part in (train, validation, fresh)]
    assert sum(map(len, numbers)) == len(set.union(*numbers)) == rows.count()
    assert found.summary.rows == dict(zip(("train", "validation", "test"), map(len, numbers), strict=True))
    evaluator = task.getEvaluator().setNumBins(0)
    assert evaluator.evaluate(found.transform(fresh)) == pytest.approx(found.summary.fresh["winner"], abs=1e-12)
    # The metric of the winner's trial is that of the model that ships, where Spark and the solver agree.
    assert evaluator.evaluate(found.transform(validation)) == pytest.approx(found.summary.validation, abs=1e-4)


def test_it_is_saved_and_loaded(task: Search, found: SearchModel, rows: DataFrame, tmp_path: Path) -> None:
    found.write().save(f"file://{tmp_path}/model")
    loaded = SearchModel.load(f"file://{tmp_path}/model")
    assert loaded.summary == found.summary and loaded.trials.equals(found.trials) and loaded.uid == found.uid
    one, other = (m.transform(rows).agg(F.sum(vector_to_array("probability")[1])).first()[0] for m in (loaded, found))
    assert one == other
    for folder in ("model", "model/pipelineModel"):
        assert PipelineModel.load(f"file://{tmp_path}/{folder}").stages[-1].uid == found.bestModel.stages[-1].uid
    assert sparkdiff.plain(found) is found.bestModel
    task.write().save(f"file://{tmp_path}/search")
    again = Search.load(f"file://{tmp_path}/search")
    assert again.task().space.dimensions == task.task().space.dimensions
    assert again.settings() == task.settings() and again.uid == task.uid
    assert again.getEstimator().getStages()[1].getStages()[1] is None
    copied = task.copy({task.numTrials: 3, task.getEstimator().getStages()[2].k: 2})
    assert copied.getNumTrials() == 3 and copied.getEstimator().getStages()[2].getK() == 2
    assert task.getNumTrials() == 5 and task.getEstimator().getStages()[2].getK() == 1


@pytest.fixture(scope="module")
def line(rows: DataFrame) -> Iterator[tuple[DataFrame, Search]]:
    """A search that is solved at once, so that it takes a second, and its rows."""
    data = VectorAssembler(inputCols=NUMBERS, outputCol="features").transform(rows).cache()
    head = LinearRegression(labelCol="riders")
    space = {head.regParam: loguniform(1e-4, 5), head.elasticNetParam: uniform(0, 1)}
    yield (
        data,
        Search(
            head,
            space=space,
            evaluator=RegressionEvaluator(labelCol="riders"),
            numTrials=6,
            sampler="random",
            numFolds=0,
        ),
    )
    data.unpersist()


class Heard(Events):
    def __init__(self) -> None:
        self.rows, self.decided = list[Any](), list[Any]()

    def on_epoch(self, row: Any) -> None:
        self.rows.append(row)

    def on_decision(self, record: Any) -> None:
        self.decided.append(record)


def test_a_search_in_a_folder_repeats_nothing(line: tuple[DataFrame, Search], tmp_path: Path) -> None:
    data, search = line
    search = search.copy({search.runDir: str(tmp_path / "run"), search.numTrials: 2})
    first = search.fit(data)
    assert first.summary.decision == "kept default" and first.bestModel.getRegParam() == 0.0
    assert "chance explains" in first.summary.reason or "is not better" in first.summary.reason
    current, heard = first.bestModel, Heard()
    search.callbacks = [heard]
    again = search.copy({search.numTrials: 3, search.current: current}).fit(data)
    assert heard.rows == again.records and heard.decided == [again.summary]  # the trials of the first one, too
    assert len(again.trials) == 3 and again.trials.head(2).equals(first.trials)  # the seconds too: nothing was repeated
    assert again.bestModel is current and again.summary.decision == "kept current"
    assert "of the current model" in again.summary.reason
    with pytest.raises(InputError, match=r"holds a search with other rows, seed"):
        search.copy({search.seed: 2}).fit(data.limit(1400))


def test_several_metrics_and_an_estimator_alone(line: tuple[DataFrame, Search]) -> None:
    data, head = line[0], LinearRegression(labelCol="riders", elasticNetParam=1.0)
    evaluators = [RegressionEvaluator(labelCol="riders", metricName=name) for name in ("rmse", "mae")]
    search = Search(
        head, space={head.regParam: uniform(0.1, 4)}, evaluator=evaluators, sampler="nsga2", numTrials=3, numFolds=0
    )
    model = search.fit(data)
    assert type(model.bestModel).__name__ == "LinearRegressionModel"
    assert {"rmse", "mae"} < {*model.trials.columns}
    assert model.summary.number in model.front
    assert model.trials["rmse"].min() == model.summary.validation


@pytest.mark.nightly
def test_pruned_trials_are_fitted_to_few_rows(line: tuple[DataFrame, Search]) -> None:
    data, search = line
    model = search.copy({search.pruner: "halving", search.numTrials: 9}).fit(data)
    states = model.trials["state"].tolist()
    assert states.count("complete") == 3 and states.count("pruned") == 6 == model.summary.pruned
    assert model.trials["state"][model.summary.number] == "complete"
    space = {p: choice(v) for p, v in zip(search.getSpace(), settings(model), strict=True)}
    exact = search.copy({search.space: space, search.numTrials: 1})
    assert exact.fit(data).summary.validation == pytest.approx(model.summary.validation, rel=1e-9)


def settings(model: SearchModel) -> list[Any]:
    return list(model.summary.settings.values())


def test_rows_of_a_linear_stage_are_written_once_for_all_trials(
    line: tuple[DataFrame, Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, search = line
    calls: list[int] = []
    write = cached_rows.write_rows
    monkeypatch.setattr(cached_rows, "write_rows", lambda *a: calls.append(1) or write(*a))  # type: ignore[func-returns-value]
    model = search.copy({search.sampler: "tpe", search.numTrials: 11}).fit(data)
    assert len(calls) == 1 and model.summary.trials == 11


def test_stages_with_the_same_uid_write_rows_of_their_own(rows: DataFrame) -> None:
    """A copy of a stage, and two models of one estimator."""
    one = VectorAssembler(inputCols=NUMBERS[:1], outputCol="f")
    both = one.copy({one.inputCols: NUMBERS})
    center = StandardScaler(inputCol="f", outputCol="x", withMean=True, withStd=False)
    ways = [Pipeline(stages=[a, center.fit(a.transform(rows))]) for a in (one, both)]
    head = LinearRegression(featuresCol="x", labelCol="riders")
    judge = RegressionEvaluator(labelCol="riders")
    search = Search(Pipeline(stages=[alternatives(*ways), head]), space={}, evaluator=judge, sampler="grid", numFolds=0)
    found = [record["rmse"] for record in search.fit(rows).records]
    explores = parts_of(rows, search.task().settings)[0]
    train, validation = explores.part("train"), explores.part("validation")
    alone = [judge.evaluate(Pipeline(stages=[way, head]).fit(train).transform(validation)) for way in ways]
    assert found == pytest.approx(alone)
    assert found[0] > 1.05 * found[1]


def test_alternatives_may_name_several_columns(spark: SparkSession) -> None:
    """Although a default of outputCol, with the uid, is there."""
    ways = [Imputer(strategy=s, inputCols=["temp", "wind"], outputCols=["t", "w"]) for s in ("mean", "median")]
    assert alternatives(*ways).names() == ["Imputer 0", "Imputer 1"]
    head = VectorAssembler(inputCols=["t", "w"], outputCol="features")
    place = alternatives(ways[0], None)
    assert place.copy({place.stages: ways[1:]}).getStages()[0].getStrategy() == "median"
    empty = with_choices(Pipeline(stages=[place, head]), {place.uid: 1})
    assert empty.getStages()[0].getInputCols() == ["temp", "wind"]


class Rmse(Evaluator):
    """A metric of one's own, with an option that is no Param; as tutorials write it, its __init__ calls no other."""

    def __init__(self, label: str, factor: float = 1.0):
        self.label, self.factor = label, factor

    def _evaluate(self, dataset: DataFrame) -> float:
        error = F.avg(F.pow(F.col(self.label) - F.col("prediction"), 2))
        return float(self.factor * dataset.agg(error).first()[0] ** 0.5)

    def isLargerBetter(self) -> bool:
        return False


@pytest.fixture(scope="module")
def gaps(rows: DataFrame) -> Iterator[tuple[DataFrame, Bucketizer, Pipeline]]:
    """Rows of which a pipeline can leave out those that it predicts badly."""
    known = F.when(F.col("number") % 4 > 0, F.col("temp"))
    label = F.when(F.col("number") % 4 > 0, F.col("wind").cast("double")).otherwise(F.col("number") % 97)
    data = rows.select("number", known.cast("double").alias("gap"), "wind", label.alias("label")).cache()
    bucket = Bucketizer(splits=[-math.inf, 0.5, math.inf], inputCol="gap", outputCol="b", handleInvalid="keep")
    assembler = VectorAssembler(inputCols=["wind"], outputCol="features")
    yield data, bucket, Pipeline(stages=[bucket, assembler, LinearRegression()])
    data.unpersist()


@pytest.mark.parametrize("way", ["own metric", "no value per row", "folds"])
def test_a_winner_that_leaves_out_rows_does_not_ship(gaps: tuple[DataFrame, Bucketizer, Pipeline], way: str) -> None:
    data, bucket, pipeline = gaps
    evaluator = {
        "own metric": Rmse("label"),
        "no value per row": RegressionEvaluator(metricName="r2", throughOrigin=True),
        "folds": RegressionEvaluator(),
    }[way]
    search = Search(
        pipeline,
        space={bucket.handleInvalid: ["skip"]},
        evaluator=evaluator,
        sampler="grid",
        numFolds=2 if way == "folds" else 0,
    )
    model = search.fit(data)
    assert model.summary.settings["Bucketizer.handleInvalid"] == "skip"
    assert model.summary.decision == "kept default" and not model.summary.tested
    assert (
        "the winner leaves out" in model.summary.reason and "rows that the other model predicts" in model.summary.reason
    )
    assert model.transform(data).count() == data.count()


def test_a_stage_that_makes_several_rows_of_one_is_not_tested(line: tuple[DataFrame, Search]) -> None:
    twice = SQLTransformer(statement="SELECT *, explode(array(1, 2)) AS part FROM __THIS__")
    weak = LinearRegression(labelCol="riders", regParam=50.0)
    evaluator = RegressionEvaluator(labelCol="riders")
    several = Pipeline(stages=[twice, weak])
    search = Search(several, space={weak.regParam: [0.1]}, evaluator=evaluator, sampler="grid", numFolds=0)
    model = search.fit(line[0])
    assert model.summary.decision == "kept default" and not model.summary.tested
    assert "because the pipelines make several rows of one, of which nothing tells the pairs" in model.summary.reason


def test_a_metric_that_is_nan_never_wins() -> None:
    for winner, default, better in [(1.0, math.nan, True), (math.nan, 1.0, False), (math.nan, math.nan, False)]:
        found = Comparison(winner, default, None, "Own gives no value per row")
        assert (
            decision_and_reason(found, Settings(guard=1.0), metric="Own", larger=True, against="default")[0] is better
        )


def test_a_study_knows_what_its_trials_read_beside_the_rows(rows: DataFrame) -> None:
    """Tables of the session in SQL, settings of the session, code and data of stages of one's own, losses, reference rows."""
    spark, data, head = rows.sparkSession, rows.select("riders"), LinearRegression(labelCol="riders")

    def request(*stages: Any, judge: Any = None) -> Any:
        estimator = Pipeline(stages=[*stages, head])
        evaluator = judge or RegressionEvaluator(labelCol="riders")
        return Search(estimator, space={head.regParam: [0.1]}, evaluator=evaluator).task().request(data)

    join = SQLTransformer(
        statement="WITH w AS (SELECT * FROM look) SELECT t.* FROM __THIS__ t JOIN w ON w.id = t.riders"
    )
    found = []
    for number in (3, 3, 4):
        spark.range(number).createOrReplaceTempView("look")
        found.append(request(join))
    assert found[0] == found[1] != found[2]
    spark.catalog.dropTempView("look")

    class Own(Normalizer):
        def __init__(self, scale: Any):
            super().__init__()
            self.scale = scale

    def by(factor: int) -> Any:
        return lambda x: factor * x

    assert request(Own(by(2))) == request(Own(by(2))) != request(Own(by(3)))
    assert request(Own({"a": [1, (2, 3)]})) != request(Own({"a": [1, (2, 4)]}))
    assert request(Own(spark.range(3))) == request(Own(spark.range(3))) != request(Own(spark.range(4)))

    def metric(factor: int) -> Any:
        class Own(RegressionEvaluator):
            def _evaluate(self, dataset: DataFrame) -> float:
                return factor * float(super()._evaluate(dataset))

        return Own(labelCol="riders")

    assert request(judge=metric(1)) == request(judge=metric(1)) != request(judge=metric(2))
    before, zone = request(), str(spark.conf.get("spark.sql.session.timeZone"))
    spark.conf.set("spark.sql.session.timeZone", "Asia/Tokyo")
    try:
        assert request() != before
    finally:
        spark.conf.set("spark.sql.session.timeZone", zone)
    assert request() == before


@pytest.mark.nightly
def test_a_study_of_another_metric_of_ones_own_is_refused(line: tuple[DataFrame, Search], tmp_path: Path) -> None:
    data, head = line[0], LinearRegression(labelCol="riders")

    def search(evaluator: Any) -> Search:
        return Search(
            head, space={head.regParam: [0.1]}, evaluator=evaluator, sampler="grid", runDir=str(tmp_path), numFolds=0
        )

    model = search(Rmse("riders")).fit(data)
    assert model.summary.validation == pytest.approx(model.summary.fresh["winner"], rel=0.5)
    assert search(Rmse("riders")).fit(data).summary.validation == model.summary.validation
    for other in (Rmse("riders", factor=1000.0), Rmse("rain")):
        with pytest.raises(InputError, match="holds a search with other evaluator"):
            search(other).fit(data)


def test_dependent_options_may_be_set_in_any_order(line: tuple[DataFrame, Search], tmp_path: Path) -> None:
    head = line[1].getEstimator()
    space = {head.regParam: [0.1]}
    rows = Search(head, space=space, evaluator=Rmse("riders"), validationFraction=0.05, testFraction=0.85)
    assert rows.copy().getTestFraction() == 0.85
    search = Search(head, space=space, evaluator=[RegressionEvaluator(metricName=m) for m in ("mae", "r2") * 6])
    pruned = search.copy().setMinResource(0.2).setPruner("halving")
    copy = Pipeline(stages=[pruned]).copy().getStages()[0].copy({pruned.numTrials: 2})
    assert (copy.getMinResource(), copy.getPruner(), copy.getNumTrials()) == (0.2, "halving", 2)
    search.save(f"file://{tmp_path}/search")
    loaded = Search.load(f"file://{tmp_path}/search")
    assert [e.uid for e in loaded.getEvaluator()] == [e.uid for e in search.getEvaluator()]
    with pytest.raises(InputError, match="evaluator Rmse can't be saved: it is not MLWritable"):
        rows.save(f"file://{tmp_path}/rows")
    assert not (tmp_path / "rows").exists()
    with pytest.raises(InputError, match=r"minResource=0.2 is for a pruner"):
        search.copy().setMinResource(0.2).fit(line[0])


def test_a_column_that_two_have_stays_out(line: tuple[DataFrame, Search]) -> None:
    data = line[0].select("features", "riders", F.lit(1).alias("same"), F.lit(2).alias("same"))
    assert line[1].copy({line[1].numTrials: 2}).fit(data).summary.trials == 2


def test_whatever_a_stage_raises_ends_its_trial_only(line: tuple[DataFrame, Search]) -> None:
    class Picky(LinearRegression):
        def _fit(self, dataset: DataFrame) -> Any:
            return {0.1: 0}[self.getRegParam()] or super()._fit(dataset)

    head = Picky(labelCol="riders", regParam=0.1)
    search = Search(head, space={head.regParam: [0.1, 0.2]}, evaluator=Rmse("riders"), sampler="grid", numFolds=0)
    model = search.fit(line[0])
    assert model.summary.failed == 1 and "0.2" in model.trials["why"][1]


@pytest.mark.nightly
def test_the_values_per_row_of_a_metric_add_up_to_it(line: tuple[DataFrame, Search]) -> None:
    """Of a metric for each column that a judge reads; tests/api/tuning/test_scores.py has all metrics."""
    data, split = line[0], Settings(validationFraction=0.2, testFraction=0.3)
    explores, parts = parts_of(data, split)
    counts = check_rows([explores, parts], split, [])[1]
    same = parts.part("test").cache()
    for label, names, evaluator, one, other in [
        (
            "kind",
            ["f1", "logLoss"],
            MulticlassClassificationEvaluator,
            LogisticRegression(labelCol="kind", maxIter=2),
            LogisticRegression(labelCol="kind", regParam=9.0),
        ),
        (
            "rain",
            ["areaUnderROC"],
            BinaryClassificationEvaluator,
            LogisticRegression(labelCol="rain", maxIter=2),
            LogisticRegression(labelCol="rain", regParam=9.0),
        ),
        (
            "riders",
            ["rmse"],
            RegressionEvaluator,
            LinearRegression(labelCol="riders"),
            LinearRegression(labelCol="riders", regParam=9.0),
        ),
    ]:
        good, bad = one.fit(data), other.fit(data)
        for name in names:
            judged = evaluator(labelCol=label, metricName=name, **({"weightCol": "weight"} if label != "rain" else {}))
            known = judge_of(judged)
            assert known is not None and known.metric is not None
            fold = compare(good, bad, parts, counts, split, judged, level=0.025)
            found = decide([fold], level=0.025, seed=0, factor=None, finalists=1)
            for value, model in ((found.winner, good), (found.default, bad)):
                exact = judged.evaluate(model.transform(same))
                assert value == pytest.approx(exact, abs=2e-3 if label == "rain" else 1e-9)
            assert found.verdict is not None
            sign = 1 if judged.isLargerBetter() else -1
            gain = sign * (found.winner - found.default)
            assert found.verdict.gain == pytest.approx(max(gain, 0.0), abs=2e-3 if label == "rain" else 1e-9), name


def test_each_model_is_judged_on_the_rows_as_they_were(rows: DataFrame) -> None:
    """A stage may write over its input, and leave out rows."""
    gaps = (
        rows.withColumn("temp", F.when(F.col("number") % 3 > 0, F.col("temp"))).select("temp", "wind", "riders").cache()
    )
    split = Settings(validationFraction=0.2, testFraction=0.3)
    explores, parts = parts_of(gaps, split)
    counts = check_rows([explores, parts], split, [])[1]
    same = parts.part("test").cache()

    def fitted(strategy: str) -> Any:
        fill = Imputer(inputCols=["temp"], outputCols=["temp"], strategy=strategy)
        return Pipeline(stages=[fill, assembler, LinearRegression(labelCol="riders")]).fit(gaps)

    assembler = VectorAssembler(inputCols=["temp", "wind"], outputCol="features", handleInvalid="skip")
    judge = RegressionEvaluator(labelCol="riders")
    mean, median = fitted("mean"), fitted("median")
    found = compare(mean, median, parts, counts, split, judge)
    assert found.winner == pytest.approx(judge.evaluate(mean.transform(same)), abs=1e-12)
    assert found.default == pytest.approx(judge.evaluate(median.transform(same)), abs=1e-12)
    few = Pipeline(stages=[assembler, LinearRegression(labelCol="riders")]).fit(gaps)
    found = decide([compare(few, mean, parts, counts, split, judge)], level=1.0, seed=0, factor=None, finalists=1)
    assert found.refused and "the winner leaves out" in found.untested
    better, reason, _ = decision_and_reason(found, Settings(guard=1.0), metric="rmse", larger=False, against="default")
    assert not better and "rows that the other model predicts" in reason
    assert compare(mean, few, parts, counts, split, judge).rows is not None
    gaps.unpersist()
    same.unpersist()


@pytest.mark.nightly
@pytest.mark.parametrize("divides", [{}, {"groupCol": "user"}, {"timeCol": "when"}], ids=["rows", "groups", "times"])
def test_few_of_many_training_rows_are_looked_at(
    rows: DataFrame, divides: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of fresh rows."""
    data = VectorAssembler(inputCols=NUMBERS, outputCol="features").transform(rows)
    head, found = LinearRegression(labelCol="riders", regParam=50.0), list[int]()
    scored = winner_comparison.predict_both

    def counted(*given: Any) -> Any:
        found.append(len(read.weight) if not isinstance(read := scored(*given), str) else 0)
        return read

    monkeypatch.setattr(winner_comparison, "TRAINING_ROWS", 100)
    monkeypatch.setattr(winner_comparison, "predict_both", counted)
    judge = RegressionEvaluator(labelCol="riders")
    search = Search(
        head, space={head.regParam: [0.1]}, evaluator=judge, sampler="grid", testFraction=0.05, numFolds=0, **divides
    )
    fresh = search.fit(data).summary.rows["test"]
    assert len(found) == 1 and fresh + 50 < found[0] < fresh + 180


def test_a_request_says_all_that_decides_the_trials(rows: DataFrame) -> None:
    head, data = LinearRegression(labelCol="riders"), rows.select("riders")
    judge = RegressionEvaluator(labelCol="riders")

    def request(estimator: Any, space: Any, **options: Any) -> Any:
        return Search(estimator, space=space, evaluator=judge, **options).task().request(data)

    reg, net = {head.regParam: [0.1, 1.0]}, {head.elasticNetParam: [0.0, 1.0]}
    base = request(head, {**reg, **net})
    assert base == request(head, {**reg, **net})
    assert base != request(head, {**net, **reg})  # a grid has an order
    long = "x" * 60
    assert request(head, {head.predictionCol: [f"{long}a"]}) != request(head, {head.predictionCol: [f"{long}b"]})
    scalers = [
        StandardScaler(inputCol="v", outputCol="s", withMean=m).fit(
            rows.select(array_to_vector(F.array(F.col(c))).alias("v"))
        )
        for m, c in ((False, "temp"), (False, "wind"))
    ]
    one, other = (request(Pipeline(stages=[scaler, head]), reg) for scaler in scalers)
    assert one != other and one == request(Pipeline(stages=[scalers[0], head]), reg)

    first = VectorAssembler(inputCols=["temp"], outputCol="f")
    others = [first.copy({first.inputCols: [c], first.outputCol: "g"}) for c in ("temp", "wind")]  # with the same uid
    place = alternatives(
        StandardScaler(inputCol="g", outputCol="features"), Normalizer(inputCol="g", outputCol="features")
    )
    one, other = (request(Pipeline(stages=[first, copy, place, head]), reg) for copy in others)
    assert one != other

    def default_output() -> Any:
        assembler = VectorAssembler(inputCols=["temp"])
        last = LinearRegression(labelCol="riders", featuresCol=assembler.getOutputCol())
        return request(Pipeline(stages=[assembler, last]), {last.regParam: [0.1]})

    assert default_output() == default_output()


def test_a_fine_tuner_is_searched_and_plain_spark_ships(rows: DataFrame, shared: Path) -> None:
    head = LinearRegression(labelCol="riders", regParam=3.0)
    pipeline = Pipeline(stages=[VectorAssembler(inputCols=NUMBERS, outputCol="features"), head])
    tuner = sparkdiff.FineTuner(pipeline, cacheDir=str(shared), **{**QUICK, "guard": 1.0, "maxEpochs": 1})
    with pytest.raises(InputError, match=r"runId of FineTuner_.* names one training, but each trial is one"):
        Search(tuner.copy({tuner.runId: "a"}), space={tuner.ema: [0.5]}, evaluator=RegressionEvaluator()).task()
    search = Search(
        tuner,
        space={tuner.learningRate: [0.1]},
        sampler="grid",
        numFolds=0,
        evaluator=RegressionEvaluator(labelCol="riders"),
    )
    model = search.fit(rows)
    assert type(model.bestModel) is PipelineModel
    assert model.trials["state"].tolist() == ["complete"]


def test_trials_start_with_the_given_or_a_suitable_minimum(spark: SparkSession) -> None:
    boosted, forest = GBTRegressor(maxIter=80), RandomForestRegressor(numTrees=80)
    for last, resource, least, trained, expected in [
        (boosted, "auto", None, 5000, (9, 27, 80)),
        (forest, "auto", None, 5000, (3, 9, 27, 80)),
        (boosted, "auto", 20, 5000, (27, 80)),
        (boosted, "maxDepth", None, 5000, (2, 5)),
        (boosted, "rows", None, 5000, (0.111, 0.333, 1)),
        (boosted, "rows", None, 100_000, (0.037, 0.111, 0.333, 1)),
        (boosted, "rows", 0.01, 5000, (0.012, 0.037, 0.111, 0.333, 1)),
    ]:
        space = SearchSpace.of(last, {last.subsamplingRate: [0.5, 1.0]})
        assert resources_of(space, resource, least, trained) == pytest.approx(expected, abs=1e-3), (resource, least)
    with pytest.raises(InputError, match="minResource=80 is not below 80, which is maxIter of GBTRegressor_"):
        resources_of(SearchSpace.of(boosted, {boosted.stepSize: [0.1]}), "auto", 80)


def test_what_cannot_be_is_named_before_any_job(rows: DataFrame, jobs: Callable[[], int]) -> None:
    pipeline, s = parts()
    area, reg = BinaryClassificationEvaluator(labelCol="rain"), s["head"].regParam
    good: dict[str, Any] = {"estimator": pipeline, "space": {reg: [0.1, 1.0]}, "evaluator": area}
    stranger = LogisticRegression()
    jobs()
    for changed, message in [
        ({"space": {stranger.regParam: [1.0]}}, "which is no stage of the estimator; the LogisticRegression of the"),
        ({"space": {s["head"].elasticNetParam: uniform(0, 2)}}, "space gives elasticNetParam of .* the value 2.0: "),
        ({"space": {s["pca"].k: integer(0, 3)}}, "space gives k of PCA_.* the value 0: "),
        ({"space": {reg: 0.1}}, "give sparkdiff.uniform, loguniform, integer or choice"),
        ({"space": {}, "estimator": LogisticRegression()}, "space is empty"),
        ({"space": [1]}, "space must be a dict of Params, got list"),
        ({"evaluator": BinaryClassificationEvaluator(metricName="area")}, r"metricName='area'"),
        ({"evaluator": None}, "Search has no evaluator"),
        ({"evaluator": "auc"}, "evaluator must be an Evaluator .* got str"),
        ({"sampler": "bayes"}, "sampler"),
        ({"sampler": "cmaes", "evaluator": [area, area]}, "looks at one metric"),
        (
            {"pruner": "median", "evaluator": [area, area]},
            "pruner='median' compares trials by one metric, but there are 2",
        ),
        ({"pruner": "bohb", "sampler": "random"}, "pruner='bohb' is Hyperband with TPE, but sampler='random'"),
        ({"pruner": "asha"}, "'pruner' option must be one of median"),
        ({"pruner": "halving", "resource": "numTrees"}, "resource='numTrees' is no Param of LogisticRegression"),
        ({"pruner": "halving", "minResource": 1.5}, "minResource=1.5 is not below 1, which is all training rows"),
        (
            {"pruner": "halving", "resource": "maxIter", "minResource": 100},
            "not below 100, which is maxIter of LogisticReg",
        ),
        (
            {"pruner": "halving", "resource": "maxIter", "minResource": 0.1},
            "minResource=0.1 is no number of maxIter of Log",
        ),
        ({"minResource": 0.5}, "minResource=0.5 is for a pruner"),
        ({"pruner": "halving", "minResource": 0}, "minResource"),
        ({"pruner": "halving", "resource": "maxIter", "space": {s["head"].maxIter: [1, 2]}}, "is searched too"),
        ({"sampler": "grid", "space": {reg: uniform(0, 1)}}, "sampler='grid' needs a list of values"),
        ({"numTrials": 0}, r"'numTrials' option must be in \[1"),
        ({"numTrial": 3}, "unknown option 'numTrial' of Search. Did you mean 'numTrials'"),
        ({"validationFraction": 0.5, "testFraction": 0.5}, "leave no rows"),
        ({"groupCol": "user", "timeCol": "when"}, "exclude each other"),
        ({"groupCol": "usr"}, "groupCol='usr' is not a column of the data. Did you mean 'user'"),
        ({"estimator": s["head"].getFamily()}, "estimator must be an Estimator, got str"),
        ({"current": pipeline}, "isn't fitted"),
    ]:
        given = {name: value for name, value in {**good, **changed}.items() if value is not None}
        with pytest.raises(InputError, match=message):
            Search(**given).fit(rows)
    assert jobs() == 0
    with pytest.raises(InputError, match=r"of which sparkdiff.Search chooses one"):
        pipeline.fit(rows)


def test_rows_that_cannot_decide_are_named_before_any_fit(rows: DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, s = parts()
    search = Search(
        pipeline,
        space={s["head"].regParam: [0.1]},
        evaluator=BinaryClassificationEvaluator(labelCol="rain"),
        numFolds=2,
    )
    monkeypatch.setattr(Pipeline, "_fit", lambda *a: pytest.fail("a fit"))
    for data, message in [
        (rows.where("rain = 1"), "labelCol='rain' holds one class only, 1"),
        (
            rows.where("rain = 1").unionByName(rows.where("rain = 0").limit(1)),
            r"part of fold \d has no row of class 0 of 'rain'",
        ),
        (rows.withColumn("rain", F.when(F.col("number") > 9, F.col("rain"))), "labelCol='rain' holds nulls"),
    ]:
        with pytest.raises(InputError, match=message):
            search.fit(data)
    monkeypatch.undo()
    head = LogisticRegression(featuresCol="x", labelCol="rain")
    pca = PCA(inputCol="f", outputCol="x")
    bare = Pipeline(stages=[VectorAssembler(inputCols=NUMBERS, outputCol="f"), pca, head])
    with pytest.raises(
        InputError, match=r"the estimator as it is, .* can't be fitted \(.*k.*: set on its stages what only"
    ):
        Search(bare, space={pca.k: integer(1, 3)}, evaluator=search.getEvaluator()).fit(rows)
    timed = search.copy({search.timeCol: "when"})
    with pytest.raises(InputError, match="timeCol='when' holds nulls"):
        timed.fit(rows.withColumn("when", F.when(F.col("number") > 9, F.col("when"))))
    endless = F.when(F.col("number") > 9, F.col("number").cast("double")).otherwise(float("inf"))
    with pytest.raises(InputError, match="timeCol='when' holds nulls, NaN or infinite times"):
        timed.fit(rows.withColumn("when", endless))


def test_times_and_groups_are_respected(rows: DataFrame) -> None:
    explores, timed = parts_of(rows, Settings(validationFraction=0.2, testFraction=0.25, timeCol="when"))
    three = [explores.part("train"), explores.part("validation"), timed.part("test")]
    spans = [part.agg(F.min("number"), F.max("number")).first() for part in three]
    assert spans[0][1] < spans[1][0] and spans[1][1] < spans[2][0]
    assert timed.rows.where("__sparkdiff_split = 'test'").select("__sparkdiff_block").distinct().count() == 50
    explores, grouped = parts_of(rows, Settings(validationFraction=0.2, testFraction=0.25, groupCol="user"))
    three = [explores.part("train"), explores.part("validation"), grouped.part("test")]
    users = [{r[0] for r in part.select("user").distinct().collect()} for part in three]
    assert sum(map(len, users)) == len(set.union(*users)) == 150
