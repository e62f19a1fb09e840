"""Ways of their own that few rows go: what they compute is what torch computes of many rows."""

from typing import Any

import numpy as np
import pytest
import torch

from sparkdiff.errors import InputError
from sparkdiff.serving.scorer import schedule as schedules
from sparkdiff.serving.scorer.few_rows import OneHotStep, steps
from sparkdiff.serving.scorer.requests import InputColumn, table_of
from sparkdiff.serving.scorer.schedule import InputPlaces, OutputColumn, Schedule, TorchStep
from sparkdiff.serving.scorer.scorer import result_objects
from sparkdiff.stages.indexing import OneHotEncoder
from sparkdiff.tensors.rows import SPARSE_FROM

ODD = (0.0, -0.0, 1.0, 1.5, 2.0, 3.0, -0.5, -1.0, 7.0, float("nan"), float("inf"), 1e300, None)


def schedule(keep: bool, drop_last: bool, sizes: tuple[int, ...] = (3, 1)) -> Schedule:
    """Two columns of numbers, encoded."""
    encoder = OneHotEncoder("hot", ("a", "b"), sizes, keep, drop_last)
    step = TorchStep("hot", ("a", "b"), (0, 2), (4, 5), encoder, (1, 3))
    entries = tuple(InputPlaces(InputColumn(name, (name,)), 2 * i, 2 * i + 1) for i, name in enumerate("ab"))
    outputs = (OutputColumn("x", 4, schedules.NOWHERE, "double"), OutputColumn("y", 5, schedules.NOWHERE, "double"))
    return Schedule(entries, (step,), outputs, 6, True, ())


def answers(made: Schedule, row: dict[str, Any]) -> list[Any]:
    """What a single row gets, and what it gets as one of several; the text of an error where it is refused."""

    def shown(ask: Any) -> Any:
        try:
            values = ask()
        except InputError as e:
            return str(e)
        return [result_objects(values[o.place], None, o.kind)[0] for o in made.outputs]

    with torch.inference_mode():
        alone = shown(lambda: made.of_row(row, steps(made)))
        together = shown(lambda: made.of_table(table_of([row, row], str), made.steps))
    return [alone, together]


def test_a_null_vector_is_refused_alone_as_among_others() -> None:
    made = schedule(True, True)
    [step] = made.steps
    step.module.refusing = {"b": "tree"}  # type: ignore[union-attr]
    alone, together = answers(made, {"a": None, "b": None})
    assert alone == together
    assert "column 'b' holds null, so that its vector is null, which tree refuses" in alone
    for answer in answers(made, {"a": None, "b": 0.0}):
        assert np.isnan(answer[0]).all()


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_row_is_encoded_alone_as_among_others(keep: bool, drop_last: bool) -> None:
    made = schedule(keep, drop_last)
    assert isinstance(steps(made)[0], OneHotStep)
    for a in ODD:
        for b in (0.0, 1.0, None):
            alone, together = answers(made, {"a": a, "b": b})
            assert type(alone) is type(together), (a, b)
            if isinstance(alone, str):
                assert alone == together and "the categories are 0 to" in alone
            else:
                for ours, theirs in zip(alone, together, strict=True):
                    np.testing.assert_array_equal(ours, theirs)


def test_wide_blocks_go_the_way_of_many_rows() -> None:
    made = schedule(True, True, (SPARSE_FROM, 2))
    alone, together = answers(made, {"a": 5.0, "b": 1.0})
    assert str(alone[0]) == str(together[0])


def test_answers_share_no_memory() -> None:
    """A caller may write to what it gets."""
    made = schedule(True, True)
    first = answers(made, {"a": 1.0, "b": 0.0})[0]
    first[0][:] = 9.0
    np.testing.assert_array_equal(answers(made, {"a": 1.0, "b": 0.0})[0][0], [0.0, 1.0, 0.0])
