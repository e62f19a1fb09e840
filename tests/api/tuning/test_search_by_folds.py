"""A `Search` by folds: the first chooses, the others decide, each by models fitted without it, and all rows fit what ships."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyspark.ml import Pipeline
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import (
    BinaryClassificationEvaluator,
    Evaluator,
    MulticlassClassificationEvaluator,
    RegressionEvaluator,
)
from pyspark.ml.feature import StringIndexer, VectorAssembler
from pyspark.ml.regression import DecisionTreeRegressor, LinearRegression
from pyspark.sql import DataFrame, SparkSession, functions as F

from sparkdiff import InputError, Search, uniform
from sparkdiff.data.splits import SPLIT, TEST, TRAIN, VALIDATION
from sparkdiff.proof.decision import FINALISTS
from sparkdiff.search import search_run
from sparkdiff.search.search_options import Settings
from sparkdiff.search.splitting import DividedRows, assign_splits, divide_rows

N = 1800


@pytest.fixture(scope="module")
def data(spark: SparkSession) -> Iterator[DataFrame]:
    """A target that depends on x, another one that is noise, groups of six rows, and a time by which the rows lie."""
    drawn = spark.range(N, numPartitions=1).select("id", F.randn(1).alias("x"), F.randn(2).alias("noise"))
    rows = drawn.withColumns(
        {"y": F.col("x") + F.col("noise") / 2, "user": F.floor(F.col("id") / 6), "when": F.col("id") / 7}
    )
    rows = rows.withColumn("rain", (F.col("y") > 0).cast("double"))
    kept = VectorAssembler(inputCols=["x"], outputCol="features").transform(rows).cache()
    yield kept
    kept.unpersist()


def weak(**options: Any) -> Search:
    """A search whose winner is much better than the default."""
    head = LinearRegression(labelCol="y", regParam=4.0)
    given = {
        "space": {head.regParam: [0.01, 1.0]},
        "evaluator": RegressionEvaluator(labelCol="y"),
        "sampler": "grid",
        "numFolds": 3,
    }
    return Search(**{"estimator": head, **given, **options})


def same(one: Any, other: Any) -> None:
    """Of two results all but the seconds."""
    left, right = ({**m.summary.toDict(), "seconds": 0} for m in (one, other))
    assert left == right
    assert [{**r, "seconds": 0} for r in one.records] == [{**r, "seconds": 0} for r in other.records]
    assert one.bestModel.coefficients == other.bestModel.coefficients


# The rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.nightly
@pytest.mark.parametrize("by", [{}, {"groupCol": "user"}, {"timeCol": "when"}], ids=["rows", "groups", "times"])
@pytest.mark.parametrize("folds", [0, 5])
def test_no_row_is_in_two_parts(data: DataFrame, by: dict[str, str], folds: int) -> None:
    """Though a column is another one at each reading."""
    new = F.udf(lambda: str(uuid.uuid4())).asNondeterministic()
    split = Settings(validationFraction=0.2, testFraction=0.2, numFolds=folds, **by)  # type: ignore[arg-type]
    whole, division = divide_rows(data.select("id", "user", "when").withColumn("token", new()), split)
    whole.cache()

    def ids(part: DividedRows, name: str) -> set[int]:
        found = [r[0] for r in part.part(name).select("id").collect()]
        assert len(found) == len({*found}) > 0.05 * N
        return {*found}

    first = assign_splits(division.explores, split, division.boundaries[0])
    train, chooses, held = ids(first, TRAIN), ids(first, VALIDATION), list[set[int]]()
    assert not train & chooses
    for sources in division.proves:
        part = assign_splits(sources, split, division.boundaries[1])
        assert part.part(TRAIN).columns == ["id", "user", "when", "token"]
        fits, own = ids(part, TRAIN), ids(part, TEST)
        held.append(own)
        if "timeCol" in by:
            assert max(fits) < min(own) and (not folds or fits == {*range(min(own))})
            assert 10 <= part.rows.where(F.col(SPLIT) == TEST).select("__sparkdiff_block").distinct().count() <= 50
        else:
            assert fits | own == {*range(N)} or fits == train
        if "groupCol" in by:
            assert not {i // 6 for i in fits} & {i // 6 for i in own}
        assert not fits & own
    decide = set.union(*held)
    assert sum(map(len, held)) == len(decide) and not decide & chooses
    if not folds:
        assert division.proves[0][0].df is division.explores[0].df and train | chooses | decide == {*range(N)}
    elif "timeCol" in by:
        assert len(held) == 3 and max(train) < min(chooses) and max(chooses) < min(decide)
        assert decide == {*range(min(decide), N)} and len(decide) == pytest.approx(0.3 * N, abs=3)
    else:
        assert len(held) == 4 and chooses | decide == {*range(N)}
    whole.unpersist()


def test_models_of_other_rows_prove_folds_and_all_rows_ship(data: DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    fits, proven, fitted, compare = list[Any](), list[Any](), search_run._fit_settings, search_run.compare

    def seen(task: Any, trial: Any, rows: DataFrame) -> Any:
        fits.append((trial and trial.configuration, {r[0] for r in rows.select("id").collect()}))
        return fitted(task, trial, rows)

    def compared(winner: Any, default: Any, rows: DividedRows, *given: Any, **more: Any) -> Any:
        proven.append({r[0] for r in rows.part(TEST).select("id").collect()})
        return compare(winner, default, rows, *given, **more)

    monkeypatch.setattr(search_run, "_fit_settings", seen)
    monkeypatch.setattr(search_run, "compare", compared)
    model, every = weak().fit(data), {*range(N)}
    found = model.summary
    assert (
        found.decision == "winner"
        and "on the out-of-fold rows the winner is better" in found.reason
        and found.folds == 3
    )
    *folds, all_rows = proven
    assert [given for given, _ in fits] == 2 * [None] + 2 * [found.settings] + [None, found.settings]
    assert [rows for _, rows in fits] == 2 * [every - own for own in folds] + 2 * [every] and all_rows == every
    assert found.rows == {
        "train": N - found.rows["validation"],
        "validation": found.rows["validation"],
        "test": sum(map(len, folds)),
    }
    assert found.rows["validation"] + found.rows["test"] == N
    again = LinearRegression(labelCol="y", regParam=found.settings["LinearRegression.regParam"]).fit(data)
    assert model.bestModel.coefficients == again.coefficients


@pytest.mark.nightly
def test_by_time_models_of_earlier_rows_prove_each_stretch(data: DataFrame) -> None:
    model = weak(timeCol="when", numFolds=5).fit(data)
    found = model.summary
    assert found.decision == "winner", found.reason
    assert found.folds == 4 and found.rows["test"] == pytest.approx(0.3 * N, abs=3)
    assert found.rows["train"] == pytest.approx(0.6 * N, abs=3)
    with pytest.raises(
        InputError, match="timeCol='when' holds nulls, NaN or infinite times, so these rows belong to no part"
    ):
        weak(timeCol="when").fit(data.withColumn("when", F.when(F.col("id") > 9, F.col("when"))))
    with pytest.raises(InputError, match="groupCol='user' holds nulls, so these rows belong to no part"):
        weak(groupCol="user").fit(data.withColumn("user", F.when(F.col("id") > 9, F.col("user"))))


def test_a_fold_without_rows_is_named(data: DataFrame) -> None:
    with pytest.raises(
        InputError, match=r"0 rows are in the \w+ part of fold \d, and at least 1 is needed: use fewer folds"
    ):
        weak(groupCol="user", numFolds=9).fit(data.where("user < 3"))


# The decision --------------------------------------------------------------------------------------------------------


@pytest.mark.nightly
@pytest.mark.parametrize("leak", [False, True])
def test_a_tree_that_learns_noise_ships_only_if_rows_leak(
    data: DataFrame, monkeypatch: pytest.MonkeyPatch, leak: bool
) -> None:
    """The fault is planted: the same test would show it."""
    tree = DecisionTreeRegressor(labelCol="noise", maxDepth=0, maxBins=1024, seed=1)
    rows = VectorAssembler(inputCols=["id", "when"], outputCol="features").transform(data.drop("features"))
    search = Search(
        tree, space={tree.maxDepth: [12]}, evaluator=RegressionEvaluator(labelCol="noise"), sampler="grid", numFolds=3
    )
    part = DividedRows.part

    def leaking(self: DividedRows, split: str) -> DataFrame:
        return part(self, TRAIN).unionByName(part(self, TEST)) if split == TRAIN else part(self, split)

    if leak:
        monkeypatch.setattr(DividedRows, "part", leaking)
    found = search.fit(rows).summary
    assert found.decision == ("winner" if leak else "kept default") and found.tested
    assert leak or found.fresh["winner"] > 1.05 * found.fresh["default"]


@pytest.mark.nightly
def test_p_allows_for_four_finalists_and_dependent_folds(data: DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    told, decide = list[Any](), search_run.decide

    def both(folds: Any, **given: Any) -> Any:
        told.append((given, [fold.rows for fold in folds], decide(folds, **{**given, "finalists": 1}).verdict))
        return decide(folds, **given)

    monkeypatch.setattr(search_run, "decide", both)
    head = LinearRegression(labelCol="y", regParam=0.3)  # a gain whose p isn't 0
    judge = RegressionEvaluator(labelCol="y", metricName="mae")
    for by, factor in (({}, None), ({"timeCol": "when"}, 2.0)):
        search = Search(head, space={head.regParam: [0.25]}, evaluator=judge, sampler="grid", numFolds=3, **by)  # type: ignore[arg-type]
        found = search.fit(data).summary
        given, folds, alone = told.pop()
        assert given["finalists"] == FINALISTS and given["factor"] == factor
        assert found.p == pytest.approx(min(FINALISTS * alone.p, 1.0), rel=0.3)
        assert all((fold.elsewhere is None) is (factor is not None) for fold in folds)
        for fold in folds if factor is None else ():
            own, elsewhere = fold.sums().weights > 0, fold.elsewhere
            assert float(elsewhere[own].abs().sum()) == 0 < float(elsewhere.abs().sum())  # no block is in two folds
    search.copy({search.numFolds: 0}).fit(data)
    assert told[-1][0]["finalists"] == 1


@pytest.mark.nightly
@pytest.mark.parametrize("by", [{}, {"timeCol": "when"}], ids=["rows", "times"])
def test_a_current_model_is_the_rival_in_each_fold(data: DataFrame, by: dict[str, str]) -> None:
    current = LinearRegression(labelCol="y", regParam=2.0).fit(data)
    found = weak(current=current, **by).fit(data)
    assert found.summary.decision == "winner" and found.summary.against == "current"
    errors = found.summary.fresh["default"] / RegressionEvaluator(labelCol="y").evaluate(current.transform(data))
    assert errors == pytest.approx(1.0, abs=0.1 if by else 0.03)
    good = LinearRegression(labelCol="y").fit(data)
    kept = weak(current=good, **by).fit(data)
    assert kept.bestModel is good and kept.summary.decision == "kept current"


class Worse(LinearRegression):
    """Fitted to all rows it is another model."""

    def _fit(self, dataset: DataFrame) -> Any:
        return super()._fit(dataset if dataset.count() < N else dataset.withColumn("y", F.col("y") + 0.4))


@pytest.mark.nightly
@pytest.mark.parametrize("metric", ["rmse", "r2"])
def test_winners_worse_on_all_rows_than_folds_do_not_ship(data: DataFrame, metric: Any) -> None:
    head, judge = Worse(labelCol="y", regParam=4.0), RegressionEvaluator(labelCol="y", metricName=metric)
    model = Search(head, space={head.regParam: [0.01]}, evaluator=judge, sampler="grid", numFolds=3).fit(data)
    found = model.summary
    assert found.decision == "kept default" and model.bestModel.getRegParam() == 4.0 and not found.tested
    assert "fitted to all rows the winner is worse there, at " in found.reason
    assert "than those of the folds on other rows" in found.reason


# The same again ------------------------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_a_second_run_and_more_threads_find_the_same_bits(data: DataFrame, spark: SparkSession) -> None:
    head = LinearRegression(labelCol="y", regParam=1.0)
    search = Search(
        head,
        space={head.regParam: uniform(0, 0.5), head.elasticNetParam: uniform(0, 1)},
        numTrials=6,
        sampler="random",
        evaluator=RegressionEvaluator(labelCol="y"),
        numFolds=3,
    )
    first = search.fit(data)
    same(first, search.copy({search.parallelism: 2}).fit(data))


class Killed(Exception):
    pass


@pytest.mark.nightly
@pytest.mark.parametrize("phase", ["explore", "prove"])
def test_a_killed_search_goes_on(data: DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    head = LinearRegression(labelCol="y", regParam=4.0)

    def search(folder: str) -> Search:
        space = {head.regParam: uniform(0, 1)}
        return Search(
            head,
            space=space,
            evaluator=RegressionEvaluator(labelCol="y"),
            numTrials=12,
            sampler="tpe",
            numFolds=3,
            runDir=str(tmp_path / folder),
        )

    whole, calls = search("whole").fit(data), list[int]()
    evaluate, compare = search_run.Trials.evaluate, search_run.compare

    def counted(self: Any, trials: Any, *given: Any) -> Any:
        calls.append(len(trials))
        if phase == "explore" and len(calls) == 2:
            raise Killed
        return evaluate(self, trials, *given)

    def killed(*given: Any, **more: Any) -> Any:
        if phase == "prove":
            raise Killed
        return compare(*given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(search_run.Trials, "evaluate", counted)
        patched.setattr(search_run, "compare", killed)
        with pytest.raises(Killed):
            search("run").fit(data)
    was, begun = phase, [*calls]
    phase, calls[:] = "", []
    with monkeypatch.context() as patched:
        patched.setattr(search_run.Trials, "evaluate", counted)
        same(whole, search("run").fit(data))
    assert sum(calls) == (12 - begun[0] if was == "explore" else 0)


# Which way -----------------------------------------------------------------------------------------------------------


class Own(Evaluator):
    """A metric of one's own."""

    def _evaluate(self, dataset: DataFrame) -> float:
        return float(dataset.agg(F.avg(F.abs(F.col("y") - F.col("prediction")))).first()[0])  # type: ignore[index]

    def isLargerBetter(self) -> bool:
        return False


def test_auto_takes_folds_where_they_can_decide(data: DataFrame) -> None:
    def folds(**options: Any) -> int:
        return weak(**options).task().settings.folds

    assert folds(numFolds="auto") == 5 and folds(numFolds="auto", testFraction=0.5) == 0 == folds(numFolds=0)
    assert folds(numFolds="auto", timeCol="when") == 0 and folds(numFolds="auto", timeCol="when", testFraction=0.1) == 4
    assert folds(numFolds=7) == 7 and folds(numFolds=7, timeCol="when") == 4 and folds(numFolds=2, timeCol="when") == 4
    search = weak()
    assert search.copy({search.numFolds: "auto"}).getNumFolds() == "auto" == Search().getNumFolds()
    head = LinearRegression(labelCol="y", regParam=4.0)
    slope: dict[str, Any] = {
        "estimator": head,
        "space": {head.regParam: [0.01]},
        "method": "hypergradient",
        "sampler": "tpe",
    }
    assert folds(numFolds="auto", evaluator=Own()) == 0 == folds(numFolds="auto", **slope)
    with pytest.raises(
        InputError, match=r"numFolds=3 needs a metric with a value per row, which Own lacks here: .* numFolds=0"
    ):
        folds(numFolds=3, evaluator=Own())
    with pytest.raises(InputError, match=r"method='hypergradient' is judged by fresh rows only: leave numFolds=3 out"):
        folds(numFolds=3, **slope)
    found = weak(numFolds="auto", evaluator=Own(), guard=1.0).fit(data).summary
    assert found.folds == 0 and "Own gives no value per row" in found.reason and "numFolds" not in found.reason


@pytest.mark.nightly
def test_any_gain_is_accepted_of_a_metric_that_ranks(data: DataFrame) -> None:
    head = LogisticRegression(labelCol="rain", maxIter=1, regParam=9.0)
    judge = BinaryClassificationEvaluator(labelCol="rain", metricName="areaUnderPR")
    found = (
        Search(head, space={head.regParam: [0.01]}, evaluator=judge, sampler="grid", numFolds=3, guard=1.0)
        .fit(data)
        .summary
    )
    assert found.folds == 3 and found.tested and found.fresh["winner"] > 0.8


@pytest.mark.nightly
def test_class_numbers_of_a_metric_must_agree_in_all_folds(data: DataFrame) -> None:
    """Two words that are as frequent: a StringIndexer numbers them by chance."""
    rows = data.limit(400).withColumn("word", F.when(F.col("id") % 2 > 0, "a").otherwise("b")).cache()
    indexer, head = StringIndexer(inputCol="word", outputCol="label"), LogisticRegression()
    recall = MulticlassClassificationEvaluator(metricName="recallByLabel")

    def search(**options: Any) -> Search:
        stages = [indexer.copy({indexer.getParam(name): value for name, value in options.items()}), head]
        return Search(
            Pipeline(stages=stages), space={head.regParam: [0.1]}, evaluator=recall, sampler="grid", numFolds=5
        )

    with pytest.raises(
        InputError, match=r"class 0 of labelCol='label' is '[ab]' in the first fold, but '[ab]' in fold [345]: number"
    ):
        search().fit(rows)
    assert search(stringOrderType="alphabetAsc").fit(rows).summary.folds == 5
    rows.unpersist()


def test_what_has_no_effect_with_folds_is_told(data: DataFrame) -> None:
    warnings = weak(validationFraction=0.3, testFraction=0.3, numFolds="auto").fit(data).summary.warnings
    assert [w.partition(" has no effect: ")[2] for w in warnings] == [
        "of 5 folds the first chooses among trials",
        "of 5 folds all but the first decide",
    ]
