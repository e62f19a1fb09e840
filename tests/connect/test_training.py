"""Training over Spark Connect: wide sparse columns, trees, and two processes, whose weights are those of one to the last bits."""

from pathlib import Path
from typing import Any

import pytest

from tests.support import plain_spark
from tests.support.connect_process import ran

pytestmark = [pytest.mark.slow, pytest.mark.nightly]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder that `training_over_connect` has left, and its facts."""
    folder = tmp_path_factory.mktemp("connect")
    return folder, ran("training_over_connect", folder)


def test_sparse_columns_train_alike_in_two_processes(run: tuple[Path, dict[str, Any]]) -> None:
    facts = run[1]
    assert facts["session"].startswith("pyspark.sql.connect.")
    (one, held), two = facts["sparse"]
    assert one == "tuned" and held["after"] < held["before"]
    assert two[0] == one and two[1] == pytest.approx(held, rel=1e-12)
    assert facts["apart"] < 1e-12


def test_trees_train(run: tuple[Path, dict[str, Any]]) -> None:
    assert run[1]["trees"] == ["tuned", True]


def test_the_results_are_served_without_torch_and_sparkdiff(run: tuple[Path, dict[str, Any]]) -> None:
    folder, facts = run
    names = ("sparse", "trees")
    for name, found in zip(names, plain_spark.predictions([folder / n for n in names], folder / "rows"), strict=True):
        assert found == pytest.approx(facts[f"{name} predictions"], rel=1e-12)
