"""Exports the network of every comparison of the parity tests, and compares what onnxruntime computes with Spark's outputs.

    python -m pytest -p onnx_sweep tests/parity/test_roundtrip.py tests/parity/test_tree_parity.py ...

It takes the place of `parity.compare`, so that it runs nothing in Spark. What cannot be exported is counted by its reason.
"""

import collections
from collections.abc import Iterator
from typing import Any

import onnx_parity
import pytest

from sparkdiff import InputError
from sparkdiff.pipeline import parity

FOUND: collections.Counter[str] = collections.Counter()


@pytest.fixture(autouse=True)
def exported_too(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    wrong: list[Any] = []

    def both(network: Any, where: Any, held: Any) -> Any:
        found = onnx_parity.COMPARE(network, where, held)
        if not found.ok:  # the test plants a fault
            return found
        try:
            other = onnx_parity.compared(network, where, held)
        except InputError as e:
            FOUND[str(e).partition(": ")[2].partition(". Export")[0] or str(e)] += 1
            return found
        FOUND["exported"] += 1
        wrong.extend([] if other.ok else [other])
        return found

    with monkeypatch.context() as patch:
        patch.setattr(parity, "compare", both)
        yield
    assert not wrong, wrong


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line("exported networks:")
    for why, times in FOUND.most_common():
        terminalreporter.write_line(f"{times:5} {why}")
