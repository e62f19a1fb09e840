"""Some pipelines drawn at random, for each commit; `random_pipelines.py` runs 200 at night."""

import pytest
from numpy.random import default_rng
from pyspark.ml.feature import Binarizer, StandardScaler, VectorAssembler
from pyspark.sql import SparkSession

from sparkdiff.stages import scaling
from tests.parity.random_pipelines import asked, code_of, fitted, run, smaller, truth_of
from tests.support.drawn_pipelines import LABELS, SOURCES, Case, Draw, Stage, needed_items, needed_of, row_of, switches


@pytest.mark.slow
def test_some_pipelines(spark: SparkSession) -> None:
    told: list[str] = []
    assert run(spark, range(3), told.append), "\n".join(told)


def test_any_200_pipelines_in_a_row_need_all(spark: SparkSession) -> None:
    known = switches()
    items = needed_items(known)
    assert len(items) > 200
    assert known[VectorAssembler] == {"handleInvalid": ("skip", "error", "keep")}
    assert known[StandardScaler] == dict.fromkeys(["withMean", "withStd"], (True, False))
    assert {item for seed in range(57, 257) for item in needed_of(seed, items)} == set(items)


@pytest.mark.slow
def test_a_difference_is_found_and_made_smaller(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    d, forms = Draw(default_rng(0)), dict.fromkeys(["v", "w", "counts"], "dense")
    rows = [{"id": i, **row_of(d, i, forms)} for i in range(8)]
    stages = (
        Stage(Binarizer, "binary", {"inputCol": "a", "outputCol": "high"}),
        Stage(VectorAssembler, "both", {"inputCols": ["b", "v"], "outputCol": "all"}),
        Stage(StandardScaler, "scaled", {"inputCol": "v", "outputCol": "o", "withMean": True, "withStd": True}),
    )
    case = Case(stages, rows, rows, {"id": "bigint", **SOURCES, **LABELS})
    assert asked(truth_of(fitted(case, spark), case, spark), "Scorer") == ([], None)
    right = scaling.StandardScaler.forward
    monkeypatch.setattr(scaling.StandardScaler, "forward", lambda self, x: right(self, x) + 1)
    [found, *_] = asked(truth_of(fitted(case, spark), case, spark), "Scorer")[0]
    assert found[:3] == ("Scorer", "StandardScalerModel", "alone: number in place of number")
    case, found = smaller(case, found, spark)
    assert [stage.uid for stage in case.stages] == ["scaled"]
    assert (len(case.rows), set(case.types)) == (1, {"id", "v"})
    exec(code_of(case, found, ["o"]), {})
    assert "array([" in capsys.readouterr().out
