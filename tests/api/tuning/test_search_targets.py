"""A `Search` compares models on the same labels and weights, or names the stage that makes other ones."""

import itertools
from collections.abc import Callable, Iterator
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
from pyspark.ml.feature import Binarizer, SQLTransformer, StringIndexer, VectorAssembler
from pyspark.ml.param.shared import HasLabelCol
from pyspark.ml.regression import LinearRegression
from pyspark.sql import DataFrame, SparkSession, functions as F

from sparkdiff import InputError, Search, alternatives
from sparkdiff.search import search_run


@pytest.fixture(scope="module")
def data(spark: SparkSession) -> Iterator[DataFrame]:
    """A price, and an answer that more rows give with "yes"."""
    x, noise = F.randn(1), F.randn(2)
    rows = spark.range(600, numPartitions=1).select(x.alias("x"), noise.alias("noise"))
    price = F.exp(2 + F.col("x") / 2 + F.col("noise") / 2)
    answer = F.when(F.col("x") + F.col("noise") > -0.5, "yes").otherwise("no")
    kept = VectorAssembler(inputCols=["x"], outputCol="features").transform(
        rows.withColumns({"price": price, "answer": answer})
    )
    kept = kept.cache()
    yield kept
    kept.unpersist()


class First(Evaluator, HasLabelCol):
    """A metric of one's own: how far the label's first character is down a table of characters."""

    def _evaluate(self, dataset: DataFrame) -> float:
        return float(dataset.agg(F.max(F.ascii(F.col(self.getLabelCol()).cast("string")))).first()[0])  # type: ignore[index]

    def isLargerBetter(self) -> bool:
        return False


def sql(expression: str, column: str = "label") -> SQLTransformer:
    return SQLTransformer(statement=f"SELECT *, {expression} AS {column} FROM __THIS__")


def curve(metric: str = "areaUnderROC") -> BinaryClassificationEvaluator:
    return BinaryClassificationEvaluator(metricName=metric)  # type: ignore[arg-type]


def by_class(metric: str, **options: Any) -> MulticlassClassificationEvaluator:
    return MulticlassClassificationEvaluator(metricName=metric, **options)  # type: ignore[arg-type]


def indexed(**options: Any) -> tuple[StringIndexer, Pipeline]:
    indexer = StringIndexer(inputCol="answer", outputCol="label", **options)
    return indexer, Pipeline(stages=[indexer, LogisticRegression()])


def scale(stages: Any = ("price", "log(price)"), **options: Any) -> Search:
    place = alternatives(*map(sql, stages))
    judge: Any = options.pop("evaluator", RegressionEvaluator())
    return Search(
        Pipeline(stages=[place, LinearRegression()]),
        space={},
        evaluator=judge,
        sampler="grid",
        **{"numFolds": 0, **options},
    )


def threshold() -> Search:
    made = Binarizer(inputCol="price", outputCol="label", threshold=5.0)
    pipeline = Pipeline(stages=[made, LogisticRegression()])
    return Search(pipeline, space={made.threshold: [25.0]}, evaluator=curve(), sampler="grid", numFolds=0)


def order(judge: Any, **options: Any) -> Search:
    indexer, pipeline = indexed()
    return Search(
        pipeline,
        space={indexer.stringOrderType: ["frequencyAsc"]},
        evaluator=judge,
        sampler="grid",
        **{"numFolds": 0, **options},
    )


def score_of_class_1() -> Search:
    """A number per row, which stays as it is where the classes have other numbers."""
    indexer, _ = indexed()
    judge = BinaryClassificationEvaluator(rawPredictionCol="x")
    pipeline = Pipeline(stages=[indexer, LogisticRegression(rawPredictionCol="raw")])
    space = {indexer.stringOrderType: ["frequencyAsc"]}
    return Search(pipeline, space=space, evaluator=judge, sampler="grid", numFolds=0)


def weights() -> Search:
    place = alternatives(sql("1.0", "weight"), sql("exp(-price)", "weight"))
    judge = RegressionEvaluator(labelCol="price", weightCol="weight")
    pipeline = Pipeline(stages=[place, LinearRegression(labelCol="price")])
    return Search(pipeline, space={}, evaluator=judge, sampler="grid", numFolds=0)


def words() -> Search:
    place = alternatives(sql("answer", "word"), sql("upper(answer)", "word"))
    judge: Any = First()._set(labelCol="word")
    pipeline = Pipeline(stages=[place, LinearRegression(labelCol="price")])
    return Search(pipeline, space={}, evaluator=judge, sampler="grid", numFolds=0, guard=1.0)


LABEL = "another label than in the pipeline that the winner is compared with"
NUMBERED = (
    "another label .* let a StringIndexer with stringOrderType='alphabetAsc' number the classes, which the metric"
)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("search", "stage", "says"),
    [
        (scale, "SQLTransformer", LABEL),
        (words, "SQLTransformer", LABEL),
        (threshold, "Binarizer", LABEL),
        (lambda: order(curve("areaUnderPR")), "StringIndexer", NUMBERED),
        (lambda: order(by_class("precisionByLabel")), "StringIndexer", NUMBERED),
        (lambda: order(curve("areaUnderPR"), numFolds=2), "StringIndexer", NUMBERED),
        (score_of_class_1, "StringIndexer", NUMBERED),
        (weights, "SQLTransformer", "another weight than in"),
    ],
    ids=["scale", "words by an own metric", "threshold", "PR", "by label", "PR in folds", "score", "weight"],
)
def test_models_on_other_labels_or_weights_are_not_compared(
    data: DataFrame, search: Callable[[], Search], stage: str, says: str
) -> None:
    with pytest.raises(InputError, match=rf"^{stage}_.*: [\d,]+ of [\d,]+ rows have {says}"):
        search().fit(data)


@pytest.mark.nightly
@pytest.mark.parametrize(("judge", "folds"), [("f1", 0), ("areaUnderROC", 2)])
def test_class_numbers_may_differ_if_no_metric_reads_them(data: DataFrame, judge: str, folds: int) -> None:
    evaluator: Any = curve() if judge == "areaUnderROC" else by_class(judge, metricLabel=5.0)  # which f1 does not read
    found = order(evaluator, numFolds=folds).fit(data).summary
    assert found.tested and found.fresh["winner"] == pytest.approx(found.fresh["default"])


@pytest.mark.nightly
@pytest.mark.parametrize("fault", ["label", "rows"])
def test_fits_to_all_rows_keep_the_defaults_labels_and_rows(
    data: DataFrame, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Though the winner of the fold, by which it was accepted, has them."""
    expression = "log(price)" if fault == "label" else "IF(price > 5, price, NULL)"
    place = alternatives(sql("price"), sql(expression))
    assembler = VectorAssembler(inputCols=["x", "label"], outputCol="both", handleInvalid="skip")
    weak = LinearRegression(regParam=200.0)
    search = Search(
        Pipeline(stages=[place, assembler, weak]),
        space={weak.regParam: [0.01]},
        evaluator=RegressionEvaluator(),
        sampler="grid",
        numFolds=2,
    )
    trials, fits, fitted = list[Any](), itertools.count(), search_run._fit_settings

    def first(study: Any) -> Any:
        trials.extend(study.trials())
        return trials[0]

    def faulty(task: Any, trial: Any, rows: DataFrame) -> Any:
        """The second fit of the winner is that to all rows."""
        return fitted(task, trial and trials[next(fits) > 0], rows)

    monkeypatch.setattr(search_run, "best_of", first)
    monkeypatch.setattr(search_run, "_fit_settings", faulty)
    if fault == "label":
        with pytest.raises(InputError, match=rf"^SQLTransformer_.*{LABEL}"):
            search.fit(data)
        return
    model = search.fit(data)
    assert model.summary.decision == "kept default" and "the winner leaves out" in model.summary.reason
    assert model.bestModel.stages[-1].getRegParam() == 200.0 and next(fits) == 2


class Rmse(Evaluator):
    """A metric of one's own without Params, as tutorials write it."""

    def _evaluate(self, dataset: DataFrame) -> float:
        return float(dataset.agg(F.sqrt(F.avg(F.pow(F.col("label") - F.col("prediction"), 2)))).first()[0])  # type: ignore[index]

    def isLargerBetter(self) -> bool:
        return False


OTHERS = "the rows have other labels or weights than in the pipeline"
TWICE, FEW = "SELECT *, explode(array(1, 2)) AS part FROM __THIS__", "SELECT features, label FROM __THIS__"


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("statement", "judge", "says", "folds"),
    [
        ("SELECT * FROM __THIS__", Rmse, LABEL, 0),
        (TWICE, RegressionEvaluator, OTHERS, 0),
        (TWICE, RegressionEvaluator, OTHERS, 2),
        (FEW, RegressionEvaluator, OTHERS, 0),
    ],
    ids=["own metric", "several rows of one", "several in folds", "few columns"],
)
def test_nothing_ships_beside_a_current_model_of_other_labels(
    data: DataFrame, statement: str, judge: Callable[[], Any], says: str, folds: int
) -> None:
    """Not even where no test is asked for, and nothing tells which rows are pairs."""

    def pipeline(label: str, penalty: float) -> Pipeline:
        head = LinearRegression(regParam=penalty)
        return Pipeline(stages=[sql(label), SQLTransformer(statement=statement), head])

    new = pipeline("log(price)", 5.0)
    space = {new.getStages()[-1].getParam("regParam"): [0.01]}
    search = Search(
        new,
        space=space,
        evaluator=judge(),
        sampler="grid",
        guard=1.0,
        current=pipeline("price", 9.0).fit(data),
        numFolds=folds,
    )
    with pytest.raises(InputError, match=rf"^SQLTransformer_.*: .*{says}"):
        search.fit(data)
    if folds or judge is Rmse:
        return  # that the same labels are compared there, others show
    same = pipeline("log(price)", 9.0).fit(data)
    assert search.copy({search.current: same}).fit(data).summary.decision == "winner"


def test_a_study_that_goes_on_compares_no_other_labels(data: DataFrame, tmp_path: Path) -> None:
    place = alternatives(sql("price"), sql("log(price)"))
    search = Search(
        Pipeline(stages=[place, LinearRegression()]),
        space={},
        evaluator=RegressionEvaluator(),
        sampler="grid",
        runDir=str(tmp_path),
        numFolds=0,
    )
    for _ in range(2):
        with pytest.raises(InputError, match=LABEL):
            search.fit(data)


def test_current_and_winner_must_number_classes_alike(data: DataFrame) -> None:
    _, pipeline = indexed(stringOrderType="frequencyAsc")
    current, (indexer, new) = pipeline.fit(data), indexed()
    head = new.getStages()[1]
    search = Search(
        new,
        space={head.getParam("regParam"): [0.01]},
        evaluator=curve("areaUnderPR"),
        sampler="grid",
        current=current,
        numFolds=0,
    )
    with pytest.raises(InputError, match=rf"{indexer.uid}, .*{NUMBERED}"):
        search.fit(data)
    assert search.copy({search.evaluator: curve()}).fit(data).summary.tested
    same = indexer.copy({indexer.stringOrderType: "frequencyAsc"})
    alike = search.copy({search.estimator: Pipeline(stages=[same, head])})
    assert alike.fit(data).summary.tested


@pytest.mark.parametrize("folds", [0, 2])
def test_r2_through_the_origin_is_tested(data: DataFrame, folds: int) -> None:
    """It has no value per row, but an influence."""
    judge = RegressionEvaluator(labelCol="price", metricName="r2", throughOrigin=True)
    weak = LinearRegression(labelCol="price", regParam=200.0)
    search = Search(
        weak, space={weak.regParam: [0.01]}, evaluator=judge, sampler="grid", testFraction=0.4, numFolds=folds
    )
    found = search.fit(data).summary
    assert found.tested and found.decision == "winner" and found.gain is not None
    gained = found.fresh["winner"] - found.fresh["default"]
    assert found.gain == pytest.approx(gained / found.fresh["default"], rel=0.05 if folds else 1e-9)


@pytest.mark.parametrize(("guard", "decision"), [(0.025, "kept default"), (1.0, "winner")])
def test_an_untested_metric_decides_only_without_a_guard(data: DataFrame, guard: float, decision: str) -> None:
    class Own(RegressionEvaluator):
        pass

    weak = LinearRegression(labelCol="price", regParam=20.0)
    model = Search(
        weak, space={weak.regParam: [0.01]}, evaluator=Own(labelCol="price"), sampler="grid", guard=guard, numFolds=0
    ).fit(data)
    found = model.summary
    assert found.decision == decision and not found.tested and found.p is None
    assert found.reason.startswith("not tested, because Own gives no value per row")
    assert ("set guard=1 to let the metric on the fresh rows alone decide" in found.reason) is (guard < 1)
    assert model.bestModel.getRegParam() == (20.0 if guard < 1 else 0.01)
