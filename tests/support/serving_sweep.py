"""A plugin of pytest: each pipeline that a test gives to `verify` is served in each way too, and compared with Spark.

    pytest -p tests.support -p tests.support.serving_sweep tests/parity

A Scorer answers some rows, `TorchTransformer` transforms them, onnxruntime runs the exported network, and Spark transforms what
`compact` makes of the pipeline. `test_serving_sweep.py` runs that nightly. The last lines tell how many were taken, and why
others were refused.
"""

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sparkdiff
from sparkdiff.pipeline import parity
from sparkdiff.pipeline.network import Network
from tests.support import acceptances, onnx_parity
from tests.support.compacting import TOLERANCE, worst
from tests.support.scoring import differences, fails
from tests.support.torch_parity import check_same

ROWS = 60
FOUND: collections.Counter[tuple[str, str]] = collections.Counter()
SINGLE = {"ALSModel", "Word2VecModel"}
"""Stages that Spark computes in float32."""


class Compared(acceptances.Watched):
    """Compares, too."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong: list[str] = []

    def compare(self, network: Network, where: Path, held: Sequence[Any]) -> parity.Parity:
        found = super().compare(network, where, held)
        met = self.met.get(id(self.model))
        if met is not None and "ONNX" not in met.refusals:
            other = onnx_parity.compared(network, where, held)
            self.wrong += [] if other.ok else [f"ONNX: {other}"]
        return found

    def check(self) -> list[str]:
        wrong = self.wrong
        for met in self.met.values():
            wrong += [*answered(met), *compacted(met)]
            if met.ran and "TorchTransformer" not in met.refusals:
                check_same(met.model, met.df)
            for way in acceptances.KNOWN:
                FOUND[way, acceptances.headline(met.refusals.get(way, "accepted"))] += 1
        return wrong


def answered(met: acceptances.Met) -> list[str]:
    """What a Scorer says otherwise than Spark."""
    scorer = acceptances.scorer_of(met)
    rows = met.df.limit(ROWS)
    if scorer is None or fails(met.model, rows, scorer.outputCols):  # the test is about rows that Spark refuses
        return []
    names = {type(stage).__name__ for _, stage in acceptances.FLATTEN(met.model)}
    return differences(scorer, met.model, rows, 1e-6 if names & SINGLE else 1e-9)


def compacted(met: acceptances.Met) -> list[str]:
    """What a compacted pipeline computes otherwise."""
    wrong = []
    for schema in (None, met.df.schema):
        plan = sparkdiff.compact_plan(met.model, schema=schema)
        if any(s.action != "same" for s in plan.stages):
            FOUND["compact", "fewer stages"] += 1
            # An RFormula writes the label only where the rows have what it is made of.
            columns = [c for c in plan.keepCols if c in met.model.transform(met.df).columns]
            found = worst(met.model, sparkdiff.compact(met.model, schema=schema), met.df, columns)
            wrong += [f"compact: {found}\n{plan}"] if found > TOLERANCE else []
    return wrong


acceptances.KINDS.append(Compared)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line("served:")
    for (way, why), times in FOUND.most_common():
        terminalreporter.write_line(f"{times:5} {way}: {why}")
