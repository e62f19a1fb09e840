"""How many processes numProcesses='auto' takes, by what a step takes in one and in several."""

import math
from pathlib import Path
from typing import NoReturn

import pytest

from sparkdiff.errors import InputError
from sparkdiff.options import Options
from sparkdiff.store.checkpoint_folder import CheckpointFolder
from sparkdiff.store.files import DamagedFile
from sparkdiff.training.distributed.choice import ProcessNumber, choose, most


def never(*_: object) -> NoReturn:
    pytest.fail("nothing was to be timed")


@pytest.mark.parametrize(
    ("one", "several", "steps", "seconds", "number", "says"),
    [
        (0.010, 0.006, 100_000, math.inf, 2, "10 ms in one process, and 6 ms in 2"),
        (
            0.010,
            0.011,
            100_000,
            math.inf,
            1,
            "10 ms in one process, and 11 ms in 2",
        ),  # the sums take more than they save
        (0.010, 0.006, 4_500, math.inf, 1, "6 ms in 2"),  # 45 s against 27 s and the start
        (0.010, None, 2_000, math.inf, 1, "at most 20 s in one process, and starting 2 about 15 s"),
        (0.010, None, 100_000, 20.0, 1, "at most 20 s"),  # maxSeconds ends it
        (0.010, math.inf, 100_000, math.inf, 1, "before a step of 2 processes could be timed"),
    ],
)
def test_several_are_taken_where_they_end_sooner(
    one: float, several: float | None, steps: int, seconds: float, number: int, says: str
) -> None:
    found = choose(2, steps, seconds, lambda: one, never if several is None else lambda n: several)
    assert found.number == number
    assert says in found.why


def test_one_core_has_nothing_to_choose() -> None:
    assert choose(1, 10**9, math.inf, never, never).number == 1


def test_what_is_missing_on_the_executors_is_told() -> None:
    def refused(processes: int) -> float:
        raise InputError("the executors' Python lacks torch")

    found = choose(4, 10**6, math.inf, lambda: 0.01, refused)
    assert (found.number, found.why) == (1, "4 processes can't train here: the executors' Python lacks torch")


def test_no_more_than_shards_or_slots() -> None:
    assert most(8, 20) == 8
    assert most(8, 3) == 3
    assert 1 <= most(8, None) <= 8


def test_a_choice_is_read_again(tmp_path: Path) -> None:
    assert ProcessNumber.read(tmp_path) is None
    chosen = ProcessNumber(2, "why", {"1": 3.5, "2": 2.0})
    chosen.write(tmp_path)
    assert ProcessNumber.read(tmp_path) == chosen
    (tmp_path / "processes.json").write_text("{")
    with pytest.warns(DamagedFile, match=r"processes\.json is damaged and made again"):
        assert ProcessNumber.read(tmp_path) is None


def test_the_folder_of_a_run_that_has_chosen_can_be_replaced(tmp_path: Path) -> None:
    folder = CheckpointFolder.open(tmp_path, "r", {"rows": 1}, replace=True)
    ProcessNumber(2, "why", {}).write(folder.path)
    again = CheckpointFolder.open(tmp_path, "r", {"rows": 2}, replace=True)
    assert ProcessNumber.read(again.path) is None


def test_the_option_is_a_number_or_auto() -> None:
    assert Options.of({"numProcesses": "auto"}).processes == 1
    assert Options.of({"numProcesses": 3}).processes == 3
    with pytest.raises(InputError, match=r"'numProcesses' option must be a whole number or auto. Got 'many' instead"):
        Options.of({"numProcesses": "many"})
    with pytest.raises(InputError, match=r"numProcesses='auto' is for trainings on the CPU, but device='cuda'"):
        Options.of({"numProcesses": "auto", "device": "cuda"})
