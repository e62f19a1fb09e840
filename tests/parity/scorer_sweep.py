"""A plugin of pytest: each pipeline that a test gives to `verify` gets a Scorer too, whose outputs must be Spark's.

    pytest -p scorer_sweep tests/parity

`test_scorer.py` runs that nightly. What a Scorer refuses is counted by its reason.
"""

import collections
import re
from collections.abc import Iterator
from typing import Any

import pytest
from scoring import differences, fails

import sparkdiff
from sparkdiff.evaluation import cached_parity  # noqa: F401  which takes the functions as they are before a test
from sparkdiff.pipeline import parity

FOUND: collections.Counter[str] = collections.Counter()


@pytest.fixture(autouse=True)
def scored_too(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    models: list[Any] = []
    seen: list[tuple[Any, Any]] = []
    flatten, run, compare = parity.flatten, parity.run_in_spark, parity.compare

    def flattened(model: Any) -> Any:
        models.append(model)
        return flatten(model)

    def compared(network: Any, where: Any, held: Any) -> Any:
        found = compare(network, where, held)
        if not found.ok:  # the test plants a fault
            seen.pop()
        return found

    def running(df: Any, *given: Any) -> Any:
        seen.append((models[-1], df))
        return run(df, *given)

    with monkeypatch.context() as patch:
        patch.setattr(parity, "flatten", flattened)
        patch.setattr(parity, "run_in_spark", running)
        patch.setattr(parity, "compare", compared)
        yield
    wrong = [d for model, df in {id(m): (m, df) for m, df in seen}.values() for d in check(model, df)]
    assert not wrong, "\n".join(wrong[:5])


def check(model: Any, df: Any) -> list[str]:
    try:
        scorer = sparkdiff.Scorer(model, schema=df)
    except sparkdiff.InputError as e:
        FOUND[re.sub(r"^\S+ ", "", str(e)).partition("; ")[0]] += 1
        return []
    FOUND["accepted"] += 1
    if fails(model, df.limit(60), scorer.outputCols):
        return []  # the test is about rows that Spark refuses
    single = {"ALSModel", "Word2VecModel"} & {type(stage).__name__ for _, stage in parity.flatten(model)}
    return differences(scorer, model, df.limit(60), 1e-6 if single else 1e-9)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line("scorers:")
    for why, times in FOUND.most_common():
        terminalreporter.write_line(f"{times:5} {why}")
