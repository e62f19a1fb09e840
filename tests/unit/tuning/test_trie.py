"""The trie of fits: what settings share is one fit, what differs is not; a grid that nothing takes is refused."""

from types import SimpleNamespace
from typing import Any

import pytest

from sparkdiff.errors import InputError
from sparkdiff.tuning.trie import Fit, check, grow, key


def param(parent: str, name: str) -> Any:
    return _Param(parent, name)


class _Param(SimpleNamespace):
    def __init__(self, parent: str, name: str):
        super().__init__(parent=parent, name=name)

    def __hash__(self) -> int:
        return hash((self.parent, self.name))


def uids(*names: str) -> list[frozenset[str]]:
    return [frozenset({name}) for name in names]


def shape(fit: Fit) -> list[Any]:
    return [(child.settings, shape(child)) for child in fit.after]


def test_stages_before_the_first_difference_are_shared() -> None:
    k, reg = param("PCA_1", "k"), param("LR_1", "regParam")
    maps = [{k: a, reg: b} for a in (2, 3) for b in (0.1, 0.2)]
    root = grow(uids("Indexer_1", "PCA_1", "LR_1"), maps)
    leaf = [([0], []), ([1], [])], [([2], []), ([3], [])]
    assert shape(root) == [([0, 1, 2, 3], [([0, 1], leaf[0]), ([2, 3], leaf[1])])]
    assert len([*root.below()]) == 1 + 2 + 4
    assert [fit.settings for fit in root.leaves()] == [[0], [1], [2], [3]]
    assert [child.params for child in root.after[0].after] == [{k: 2}, {k: 3}]


def test_equal_settings_are_one_and_first_stages_stay_whole() -> None:
    a, b = param("A", "x"), param("B", "y")
    assert shape(grow(uids("A", "B"), [{a: 1}, {a: 1}, {}])) == [([0, 1], [([0, 1], [])]), ([2], [([2], [])])]
    assert shape(grow(uids("A", "B"), [{b: 1}, {b: 2}])) == [([0, 1], [([0], []), ([1], [])])]


def test_params_of_a_stage_inside_another_matter_to_that() -> None:
    inner = param("LR", "regParam")
    root = grow([frozenset({"OneVsRest", "LR"})], [{inner: 1.0}, {inner: 2.0}])
    assert len(root.after) == 2


def test_who_reads_the_rows_of_a_fit() -> None:
    k, reg = param("PCA", "k"), param("LR", "regParam")
    root = grow(uids("Assembler", "PCA", "LR"), [{k: a, reg: b} for a in (1, 2, 3) for b in (1, 2)])

    def fitted(position: int) -> bool:
        return position > 0

    assembler = root.after[0]
    assert root.readers(fitted) == assembler.readers(fitted) == 3
    assert assembler.after[0].readers(fitted) == 2


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (1, 1, True),
        (1, 1.0, False),
        (True, 1, False),
        ("a", "a", True),
        ([1, 2], [1, 2], True),
        ([1, 2], [1, 3], False),
        ([1, 2], (1, 2), False),
        (float("nan"), float("nan"), True),
        (object(), object(), False),
    ],
)
def test_values_are_equal_only_if_certainly_so(one: Any, other: Any, equal: bool) -> None:
    p = param("A", "x")
    assert (key({p: one}) == key({p: other})) == equal


def test_a_grid_that_no_stage_takes_is_refused() -> None:
    class LogisticRegression:
        uid = "LogisticRegression_1"

    known = {"LogisticRegression_1": LogisticRegression()}
    with pytest.raises(InputError, match="estimatorParamMaps is empty: give at least one map"):
        check([], known, open_=False)
    with pytest.raises(
        InputError, match=r"regParam of LogisticRegression_2, .* the LogisticRegression of the estimator is"
    ):
        check([{param("LogisticRegression_2", "regParam"): 1}], known, open_=False)
    with pytest.raises(InputError, match="Did you mean 'LogisticRegression'"):
        check([{param("LogisticRegresion_2", "regParam"): 1}], known, open_=False)
    check([{param("LogisticRegression_2", "regParam"): 1}], known, open_=True)
    check([{param("LogisticRegression_1", "regParam"): 1}, {}], known, open_=False)
