"""Comparing an exported file's outputs with those of Spark's own transform, by what compares the network's."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from sparkdiff.pipeline import parity
from sparkdiff.pipeline.graph import Version
from sparkdiff.pipeline.network import Network
from sparkdiff.serving.onnx.export import REFUSED, OnnxGraph
from sparkdiff.tensors.rows import Rows, dense
from tests.support.acceptances import is_number, width


class InOnnx:
    """A network whose last versions of columns are computed by onnxruntime, from the bytes of a file."""

    def __init__(self, network: Network):
        self.network = network
        self.written: OnnxGraph | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    def run(self, values: dict[Version, Rows], wanted: Iterable[Version]) -> None:
        given = dict(values)
        self.network.run(values, wanted)  # versions that a later stage overwrites
        if self.written is None:
            widths = {v: None if is_number(given[v]) else width(given[v]) for v in self.network.reads}
            self.written = OnnxGraph(self.network, list(self.network.writes.values()), widths)
            self.session = session_of(self.written)
        found = run(self.session, inputs_of(self.written, given))
        assert not found.get(REFUSED, np.zeros(0)).any(), "it refuses rows that Spark took"
        for version in self.written.wanted:
            values[version] = torch.from_numpy(found[self.written.shown[version]])


def session_of(written: OnnxGraph) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(written.file(written.description), settings, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs), strict=True))


def inputs_of(written: OnnxGraph, values: Mapping[Version, Rows]) -> dict[str, np.ndarray]:
    """The file's inputs of a batch."""
    rows = len(next(iter(values.values())))
    found = {name: np.asarray(dense(values[v])) for v, name in written.shown.items() if v in values}
    inputs = written.description.inputs
    return {c.name: found.get(c.name, np.zeros(rows, bool)) if c.kind == "flag" else found[c.name] for c in inputs}


def compared(network: Network, where: Path, held: Sequence[Version]) -> parity.Parity:
    """Spark's outputs, which `parity.run_in_spark` wrote to a folder, beside those of the exported network."""
    return COMPARE(InOnnx(network), where, held)  # type: ignore[arg-type]


COMPARE = parity.compare
