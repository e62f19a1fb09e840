"""Saved scorers name the classes of what they hold; those of this version are read under the names that they had. No Spark."""

import pytest

from sparkdiff.serving import stored
from sparkdiff.serving.request_values import InputColumn
from sparkdiff.serving.schedule import InputPlaces, OutputColumn
from sparkdiff.serving.scorer import Scorer

HELD = (InputPlaces(InputColumn("x", ("x",), "double"), numbers=3), OutputColumn("p", 1, -1, "double"))


@pytest.mark.parametrize("value", HELD, ids=lambda value: type(value).__name__)
def test_a_class_that_was_renamed_is_read_by_its_old_name(value: object) -> None:
    assert Scorer.load  # its module registers all stages
    content, arrays = stored.encoded((value,))
    text = repr(content)
    for old, new in stored.RENAMED.items():
        text = text.replace(f"'{new}'", f"'{old}'")
    assert text != repr(content)
    assert stored.decoded(eval(text), arrays) == (value,)


def test_every_new_name_is_a_class() -> None:
    assert all(
        stored._class_of(new) is not None and stored._class_of(old) is None for old, new in stored.RENAMED.items()
    )
