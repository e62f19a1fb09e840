"""What a Scorer, `TorchTransformer` and the export to ONNX take of the pipelines that tests give to `verify`.

The tests of tests/parity ask each of the three about each such pipeline (its `conftest.py`), so an acceptance that is lost fails
its test. `serving_sweep.py`, at night, also compares what they compute with Spark.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame

from sparkdiff import InputError, Scorer
from sparkdiff.evaluation import cached_parity  # noqa: F401  which takes the functions as they are before a test
from sparkdiff.pipeline import parity
from sparkdiff.pipeline.graph import Version
from sparkdiff.pipeline.network import Network
from sparkdiff.serving.onnx.export import OnnxGraph
from sparkdiff.serving.scorer.compiling import NOT_SERVED
from sparkdiff.serving.torch_transformer import check_order
from sparkdiff.tensors.rows import Rows, SparseRows

FLATTEN, RUN, COMPARE = parity.flatten, parity.run_in_spark, parity.compare
KNOWN: dict[str, tuple[str, ...]] = {
    "Scorer": (
        *(f"({name})" for name in NOT_SERVED),
        "(RFormulaModel) cannot be computed without Spark: its parts are not accessible",
        "(VectorAssembler) cannot be computed without Spark: reads the field 'S.a' of a struct",
        "not one of Spark's stages",
    ),
    "TorchTransformer": (),
    "ONNX": (),
}
"""What the known refusals say, by way."""


class Met:
    """A pipeline that a test gave to `verify`, its rows, and why which way refuses it.

    Attributes:
        ran: whether Spark computed these rows.
    """

    def __init__(self, model: Any, df: DataFrame):
        self.model, self.df, self.ran = model, df, False
        self.refusals: dict[str, str] = {}


class ExportedToo:
    """A network that is written as ONNX, too, when it runs for the first time; `why` says why it cannot be."""

    def __init__(self, network: Network):
        self.network = network
        self.written: OnnxGraph | None = None
        self.why: str | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    def run(self, values: dict[Version, Rows], wanted: Sequence[Version]) -> None:
        given = dict(values)
        self.network.run(values, wanted)
        if self.written is None and self.why is None:
            widths = {v: None if is_number(given[v]) else width(given[v]) for v in self.network.reads}
            try:
                self.written = OnnxGraph(self.network, list(self.network.writes.values()), widths)
            except InputError as e:
                self.why = str(e)


def is_number(x: Rows) -> bool:
    return not isinstance(x, SparseRows) and x.ndim == 1


def width(x: Rows) -> int:
    return x.width if isinstance(x, SparseRows) else x.shape[1]


class Watched:
    """Sees the pipelines that a test verifies."""

    def __init__(self) -> None:
        self.met: dict[int, Met] = {}
        self.model: Any = None

    def flatten(self, model: Any) -> Any:
        self.model = model
        return FLATTEN(model)

    def run_in_spark(self, df: DataFrame, *given: Any) -> Any:
        met = self.met[id(self.model)] = Met(self.model, df)
        found = RUN(df, *given)
        met.ran = True
        return found

    def compare(self, network: Network, where: Path, held: Sequence[Version]) -> parity.Parity:
        met, asked = self.met.get(id(self.model)), ExportedToo(network)
        found = COMPARE(asked, where, held)  # type: ignore[arg-type]
        if not found.ok:  # the test plants a fault
            self.met.pop(id(self.model), None)
        elif met is not None:
            told = {"ONNX": asked.why, "TorchTransformer": order_of(network)}
            met.refusals |= {way: why for way, why in told.items() if why is not None}
        return found

    @contextmanager
    def watching(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with monkeypatch.context() as patch:
            for name in ("flatten", "run_in_spark", "compare"):
                patch.setattr(parity, name, getattr(self, name))
            yield

    def check(self) -> list[str]:
        """Refusals that are new."""
        for met in self.met.values():
            scorer_of(met)
        told = [(way, why) for met in self.met.values() for way, why in met.refusals.items()]
        return [f"{way} takes it no longer: {why}" for way, why in told if not is_known(way, why)]


def order_of(network: Network) -> str | None:
    """Why `TorchTransformer` refuses the pipeline of this network."""
    before = network.graph.reference()
    after = [
        v.position for v in network.graph.vertices if v.position not in before and v.position not in network.positions
    ]
    try:
        check_order(network, before, after)
    except InputError as e:
        return str(e)
    return None


def scorer_of(met: Met) -> Scorer | None:
    """The Scorer of a pipeline; None where it is refused, which is noted."""
    try:
        return Scorer(met.model, schema=met.df)
    except InputError as e:
        met.refusals["Scorer"] = str(e)
        return None


def is_known(way: str, why: str) -> bool:
    return any(known in why for known in KNOWN[way])


def headline(why: str) -> str:
    """A refusal without uids."""
    return re.sub(r"\w+_[0-9a-f]{12}", "a stage", why).partition("; ")[0]


KINDS: list[type[Watched]] = [Watched]
"""The last one watches; a plugin adds one that looks closer."""
