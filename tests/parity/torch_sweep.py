"""A plugin of pytest: each pipeline that a test gives to `verify` is transformed by `TorchTransformer` too, as by Spark.

    pytest -p torch_sweep tests/parity

`test_torch_transformer.py` runs that nightly. What is refused is counted by its reason.
"""

import collections
import re
from collections.abc import Iterator
from typing import Any

import pytest
from test_torch_transformer import check_same

from sparkdiff import InputError
from sparkdiff.pipeline import parity

FOUND: collections.Counter[str] = collections.Counter()


@pytest.fixture(autouse=True)
def by_torch_too(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    models: list[Any] = []
    seen: list[tuple[Any, Any]] = []
    flatten, run = parity.flatten, parity.run_in_spark

    def flattened(model: Any) -> Any:
        models.append(model)
        return flatten(model)

    def running(df: Any, *given: Any) -> Any:
        out = run(df, *given)
        if models and not any(model is models[-1] for model, _ in seen):
            seen.append((models[-1], df))
        return out

    with monkeypatch.context() as patch:
        patch.setattr(parity, "flatten", flattened)
        patch.setattr(parity, "run_in_spark", running)
        yield
    for model, df in seen:
        try:
            check_same(model, df)
        except InputError as e:
            FOUND[re.sub(r"\w+_[0-9a-f]{12}", "a stage", str(e))] += 1
        else:
            FOUND["accepted"] += 1


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line("pipelines by torch:")
    for why, times in FOUND.most_common():
        terminalreporter.write_line(f"{times:5} {why}")
