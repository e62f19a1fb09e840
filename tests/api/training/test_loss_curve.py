"""A stored loss curve, up to rounding: no change of the code may move training without being noticed.

Its bits are nobody's promise: processors and versions of Spark and torch decide them. `tools/same_bits.py` compares the bits of
two commits on one machine.
"""

import csv
import math
from pathlib import Path

import pytest
from pyspark.ml import PipelineModel
from pyspark.sql import DataFrame

from tests.support.small_data import tune

CURVE = Path(__file__).with_name("loss_curve.csv")


def test_the_loss_curve_is_the_stored_one(df: DataFrame, numeric: PipelineModel, shared: Path) -> None:
    """Delete the file to store a new one; the change of its numbers then stands in the commit."""
    summary = tune(
        numeric,
        df,
        shared,
        validationFraction=0.75,
        recipe="thorough",
        maxEpochs=6,
        learningRate=1e-3,
        schedule="cosine",
    ).summary
    history = summary.history[["epoch", "candidate", "recipe", "trainLoss", "validationMetric"]]
    if not CURVE.exists():
        history.to_csv(CURVE, index=False)
        pytest.fail(f"{CURVE.name} was missing and is stored anew: look at it and commit it")
    stored = list(csv.DictReader(CURVE.read_text().splitlines()))
    assert len(stored) == len(history)
    for row, (_, now) in zip(stored, history.iterrows(), strict=True):
        assert (row["epoch"], row["candidate"], row["recipe"]) == (
            str(now["epoch"]),
            str(now["candidate"]),
            now["recipe"],
        )
        # Spark's versions fit the pipeline with differences of 1e-9.
        for name in ("trainLoss", "validationMetric"):
            assert float(row[name] or math.nan) == pytest.approx(now[name], rel=1e-7, nan_ok=True)
