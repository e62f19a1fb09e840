"""What is left to Spark: metrics that depend on its order of operations, and settings with more than one solution."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pyspark.ml.evaluation import MulticlassClassificationEvaluator

from sparkdiff.tuning.cached_rows import RowsPiece, _far
from sparkdiff.tuning.cross_validation import best_of
from sparkdiff.tuning.evaluator_metrics import _binary, _binned, _finite, judge_of
from sparkdiff.tuning.solvers import RowFacts, Setting, why_left_to_spark

F64 = torch.float64
Y = torch.tensor([1.0, 0, 1, 0, 1, 0], dtype=F64)
SCORES = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], dtype=F64)


def value(scores: torch.Tensor, weight: torch.Tensor, metric: str = "areaUnderROC") -> float:
    return _finite(_binary(metric, 0), zeros=False)(scores, Y, weight)


def test_a_large_score_beside_small_ones_is_left_to_spark() -> None:
    ones = torch.ones(6, dtype=F64)
    assert value(SCORES, ones) == 6 / 9
    for large in (1e12, 1e15):
        assert math.isnan(value(torch.cat([torch.tensor([large], dtype=F64), SCORES[1:]]), ones))
    rare = torch.cat([torch.tensor([0.9], dtype=F64), 1e-14 * SCORES[1:]])
    assert math.isnan(value(rare, ones))
    assert value(SCORES.round(decimals=0), ones) == 0.5  # equal scores are no reason


def test_neighbouring_scores_are_joined_from_the_top() -> None:
    scores = torch.tensor([0.9, 0.1, 0.5, 0.5, 0.3, 0.7, 0.2], dtype=F64)  # six different ones
    assert torch.equal(_binned(scores, 4), scores)
    assert _binned(scores, 3).tolist() == [0, -2, -1, -1, -1, 0, -2]
    assert _binned(scores, 2).tolist() == [0, -1, 0, 0, -1, 0, -1]


def test_of_equal_metrics_the_first_wins() -> None:
    assert best_of([0.7, 0.8, 0.8 * (1 + 1e-15), 0.1], True) == 1
    assert best_of([0.7, 0.8, 0.8 * (1 + 1e-9), 0.1], True) == 2
    assert best_of([0.3, 0.2 * (1 + 1e-15), 0.2], False) == 1
    assert best_of([-1.0, 0.0, 1e-300], True) == 2
    assert best_of([1.0, math.inf, math.inf], True) == 1
    assert best_of([-math.inf, 1.0], True) == 1


def test_a_row_of_weight_0_is_a_point_of_spark_s_curves() -> None:
    weight = torch.tensor([0.0, 1, 1, 1, 1, 1], dtype=F64)
    assert math.isnan(value(SCORES, weight, "areaUnderPR"))


@pytest.mark.parametrize(("metric", "sparks"), [("f1", True), ("weightedRecall", True), ("accuracy", False)])
def test_a_class_of_rows_of_weight_0_only_is_left_to_spark(metric: str, sparks: bool) -> None:
    """Spark 4.0 gives NaN for the first two."""
    evaluator = MulticlassClassificationEvaluator.__new__(MulticlassClassificationEvaluator)
    given = {"metricName": metric, "labelCol": "label", "predictionCol": "prediction", "metricLabel": 0.0, "beta": 1.0}
    evaluator.getOrDefault = {**given, "weightCol": "weight"}.__getitem__  # type: ignore[method-assign, assignment]
    evaluator.isDefined = lambda name: True  # type: ignore[method-assign]
    judge = judge_of(evaluator)
    assert judge is not None
    prediction, label, weight = (
        torch.tensor(x, dtype=F64) for x in ([0, 1, 0, 1, 1], [0, 1, 1, 2, 0], [1, 1, 2, 0, 1])
    )
    assert math.isnan(judge.value(prediction, label, weight)) == sparks
    assert not math.isnan(judge.value(prediction, label, weight + (label == 2)))


def test_two_multinomial_classes_with_pure_l1_stay_in_spark() -> None:
    def why(**given: Any) -> str:
        base = {
            "regParam": 0.1,
            "elasticNetParam": 1.0,
            "fitIntercept": True,
            "standardization": True,
            "family": "multinomial",
        }
        return why_left_to_spark("LogisticRegression", Setting(**{**base, **given}), RowFacts(4, 2))

    assert "two classes share" in why()
    assert why(elasticNetParam=0.5) == why(regParam=0.0) == why(family="binomial") == ""


def test_what_only_one_fold_holds_out_and_lies_far_away() -> None:
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    fold, ones = torch.arange(30) % 3, torch.ones(30, dtype=F64)

    def far(x: torch.Tensor, label: torch.Tensor, *, labels: bool = True) -> str:
        pieces = [
            RowsPiece(x[:17], label[:17], ones[:17], fold[:17], None, ones[:17], ones[:17]),
            RowsPiece(x[17:], label[17:], ones[17:], fold[17:], None, ones[17:], ones[17:]),
        ]
        cache: Any = SimpleNamespace(pieces=lambda: iter(pieces), width=2)
        return _far(cache, 3, labels=labels)

    assert far(x, x[:, 0]) == ""
    wrong = x.clone()
    wrong[4, 1] = 1e9
    assert far(wrong, x[:, 0]).startswith(
        "entry 1 of the features reaches 10000 times as far in the rows that fold 1 holds out"
    )
    assert far(x, wrong[:, 1]).startswith("the label")
    assert far(x, wrong[:, 1], labels=False) == ""
    wrong[5:8, 1] = 1e9  # in every fold
    assert far(wrong, x[:, 0]) == ""
    rare = torch.zeros(30, 2, dtype=F64)
    rare[3] = 1.0  # constant where fold 0 is held out
    assert far(rare, x[:, 0]) == ""
