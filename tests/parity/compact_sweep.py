"""A plugin of pytest: each pipeline that a test gives to `verify` is compacted too, and must keep its outputs.

    pytest -p compact_sweep tests/parity

`test_compact.py` runs that nightly.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from compacting import TOLERANCE, worst

import sparkdiff
from sparkdiff.pipeline import parity

FOUND = {"pipelines": 0, "with fewer stages": 0}


@pytest.fixture(autouse=True)
def compacted_too(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    models: list[Any] = []
    seen: list[tuple[Any, Any]] = []
    flatten, run = parity.flatten, parity.run_in_spark

    def flattened(model: Any) -> Any:
        models.append(model)
        return flatten(model)

    def running(df: Any, *given: Any) -> Any:
        if models and not any(model is models[-1] for model, _ in seen):
            seen.append((models[-1], df))
        return run(df, *given)

    with monkeypatch.context() as patch:
        patch.setattr(parity, "flatten", flattened)
        patch.setattr(parity, "run_in_spark", running)
        yield
    for model, df in seen:
        check(model, df)


def check(model: Any, df: Any) -> None:
    for schema in (None, df.schema):
        plan = sparkdiff.compact_plan(model, schema=schema)
        FOUND["pipelines"] += 1
        if any(s.action != "same" for s in plan.stages):
            FOUND["with fewer stages"] += 1
            found = worst(model, sparkdiff.compact(model, schema=schema), df, plan.keepCols)
            assert found <= TOLERANCE, f"{found}\n{plan}"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"compact: {FOUND}")
