"""Names that saved and pickled things hold: those of an earlier version are found, and what is saved now names `sparkdiff`."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys

import pytest

import sparkdiff
from sparkdiff import options

OLD = [
    *("tuner.FineTuner", "tuner.FineTunerModel", "summary.FineTuningSummary", "planning.Plan", "planning.StagePlan"),
    *("parity.Parity", "errors.InputError", "errors.ParityError", "errors.SparkdiffError"),
]
AS_SPARK_DOES = """
import sys
module = __import__("sparkdiff.tuner", fromlist=["FineTuner"])  # the first thing in a process that loads a saved FineTuner
FineTuner = module.FineTuner
import sparkdiff.tuner
from sparkdiff.tuner import FineTunerModel
assert (sparkdiff.FineTuner, sparkdiff.FineTunerModel) == (FineTuner, FineTunerModel)
assert __import__("sparkdiff", fromlist=["FineTuner"]).FineTuner is FineTuner
"""


@pytest.mark.parametrize("name", OLD)
def test_an_old_name_is_the_class(name: str) -> None:
    module, _, kind = name.rpartition(".")
    found = getattr(importlib.import_module(f"sparkdiff.{module}"), kind)
    assert found is getattr(sparkdiff, kind)
    if module != "errors":
        assert f"{found.__module__}.{found.__qualname__}" == f"sparkdiff.{kind}"
    assert pickle.loads(pickle.dumps(found)) is found


def test_a_new_process_finds_them_without_a_warning() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", AS_SPARK_DOES], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_else_is_there() -> None:
    with pytest.raises(AttributeError, match="has no attribute '_listed'"):
        vars(sparkdiff)["__getattr__"]("_listed")
    assert importlib.import_module("sparkdiff.options") is options  # what is still a module isn't an alias
