"""The whole way over Spark Connect, with the JVM out of reach, and the result served by a classic session."""

from pathlib import Path
from typing import Any

import pytest

from tests.support import plain_spark
from tests.support.connect_process import ran

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder that `over_connect` has left, and its facts."""
    folder = tmp_path_factory.mktemp("connect")
    return folder, ran("over_connect", folder)


def test_it_was_connect(run: tuple[Path, dict[str, Any]]) -> None:
    assert run[1]["session"].startswith("pyspark.sql.connect.")
    assert run[1]["jvm"] == "the JVM was asked"


def test_plan_and_parity(run: tuple[Path, dict[str, Any]]) -> None:
    trained = [stage for stage, _, trains in run[1]["plan"] if trains]
    assert trained == ["StandardScalerModel", "PCAModel", "GeneralizedLinearRegressionModel"]
    assert run[1]["parity"].startswith("ok: 8,645 rows")


def test_it_tunes_and_finds_its_cache_again(run: tuple[Path, dict[str, Any]]) -> None:
    held = run[1]["metrics"]["validation"]
    assert run[1]["decision"] == "tuned"
    assert held["after"] < 0.6 * held["before"]
    assert run[1]["after"] is True
    assert run[1]["hits"] == [False, True]


def test_errors_say_the_cause(run: tuple[Path, dict[str, Any]]) -> None:
    assert ": Encountered null while assembling a row" in run[1]["refused"]


@pytest.mark.nightly
def test_jobs_serving_by_torch_and_stages_of_all_kinds(tmp_path: Path) -> None:
    """And a scaler that names no output column."""
    facts = ran("over_connect", tmp_path, "all")
    assert facts["job"] == "tuned"
    assert facts["unnamed"].startswith("ok: ")


def test_the_result_is_served_without_torch_and_sparkdiff(run: tuple[Path, dict[str, Any]]) -> None:
    folder, facts = run
    (found,) = plain_spark.predictions([folder / "model"], folder / "rows")
    assert len(found) == 8645
    assert found == pytest.approx(facts["predictions"], rel=1e-12)


def test_a_search_is_told_before_it_runs(run: tuple[Path, dict[str, Any]]) -> None:
    assert run[1]["search"].startswith("2 settings x 3 folds: Spark makes 6 fits, here they are 6")
    assert "Spark Connect: pyspark's own class makes all fits" in run[1]["search"]
    assert run[1]["foldCol"].startswith("foldCol='folt' is not a column of the data.")
