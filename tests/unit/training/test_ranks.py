"""Any number of processes trains on the same batches, and finds the same: beyond the last bits nothing may depend on it."""

import contextlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from sparkdiff.data.stream.order import by_step, copies, own_rows, parts_of, step_bounds
from sparkdiff.errors import FullDiskError, InputError
from sparkdiff.training.distributed import worker
from sparkdiff.training.distributed.attempt import Attempt, TrainingError
from tests.support.train_in_processes import CASES

ROOT = Path(__file__).parents[3]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 70), min_size=8, max_size=8).filter(any), st.integers(1, 40), st.integers(1, 40), st.data()
)
def test_the_parts_of_a_step_are_its_rows_in_their_order(
    sizes: list[int], world: int, batch: int, data: st.DataObject
) -> None:
    steps = -(-sum(sizes) // batch)
    chunk = data.draw(st.integers(1, steps))

    def served(rank: int, world: int) -> list[list[tuple[int, int]]]:
        """Per step the (shard, number in the shard's order) of a rank's rows, made chunk by chunk as the stream does it."""
        parts = parts_of(8, rank, world)
        bounds = step_bounds([sizes[part.shard] for part in parts], steps)
        out = []
        for first in range(0, steps, chunk):
            ends = bounds[:, first : first + chunk + 1]
            counts = ends[:, 1:] - ends[:, :-1]
            table = [(p.shard, j) for p, e in zip(parts, ends, strict=True) for j in range(int(e[0]), int(e[-1]))]
            rows = [table[i] for i in by_step(counts, parts)]
            begin, end = own_rows(counts, parts)
            own = (end - begin).sum(0)
            out += [rows[b - n : b] for n, b in zip(own.tolist(), own.cumsum().tolist(), strict=True)]
        return out

    alone, ranks = served(0, 1), [served(rank, world) for rank in range(world)]
    assert [len(steps) for steps in ranks] == [steps] * world
    assert sorted(row for step in alone for row in step) == [(i, j) for i, n in enumerate(sizes) for j in range(n)]
    for t, step in enumerate(alone):
        assert [row for rank in ranks for row in rank[t]] == step


def test_shards_are_dealt_evenly() -> None:
    def shards(world: int) -> list[list[int]]:
        return [[part.shard for part in parts_of(8, rank, world)] for rank in range(world)]

    assert shards(3) == [[0, 1], [2, 3, 4], [5, 6, 7]]
    assert shards(8) == [[i] for i in range(8)]
    assert shards(16) == [[i // 2] for i in range(16)]
    for world in range(1, 41):
        lengths = [len(held) for held in shards(world)]
        assert max(lengths) <= (-(-8 // world) if world <= 8 else 2)
        assert copies(8, world) == sum(lengths) / 8 <= max(1, world / 4)
    assert copies(8, 3) == copies(8, 8) == 1


@pytest.fixture(scope="module")
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    folder, every = tmp_path_factory.mktemp("ranks"), request.param == "every"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, "-m", "tests.support.train_in_processes", str(folder), *(["every"] if every else [])],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr
    return folder, every


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["few", pytest.param("every", marks=pytest.mark.nightly)], indirect=True)
@pytest.mark.parametrize("case", list(CASES))
def test_any_number_of_processes_finds_the_same(trained: tuple[Path, bool], case: str) -> None:
    folder, every = trained
    alone = torch.load(folder / f"{case}-1.pt")
    assert (alone["u"].abs().amax(1) > 1e-4).all()  # every candidate has trained
    for world in CASES[case].numbers(every)[1:]:
        found = torch.load(folder / f"{case}-{world}.pt")
        for name, bound in (("u", 1e-10), ("history", 1e-12), ("gains", 1e-11)):
            np.testing.assert_allclose(
                found[name], alone[name], rtol=bound, atol=bound, err_msg=f"{name}, {world} processes"
            )


@pytest.mark.parametrize(
    ("name", "raised"),
    [("InputError", InputError), ("FullDiskError", FullDiskError), ("KeyError", TrainingError)],
)
def test_the_error_of_the_process_that_failed_first_is_raised(tmp_path: Path, name: str, raised: type) -> None:
    """And not of those that lost it; errors of ours as what they are, others with their traceback."""
    told = {"host": "here", "ours": raised is not TrainingError, "traceback": "Traceback of the loss"}
    each = [("LostProcessError", 1.0, True), (name, 3.0, False), ("ValueError", 4.0, False)]
    for rank, (error, seconds, lost) in enumerate(each):
        line = {**told, "rank": rank, "error": error, "message": f"{error} it is", "time": seconds, "lost": lost}
        (tmp_path / f"rank-{rank}.json").write_text(json.dumps(line))
    attempt = Attempt.__new__(Attempt)
    attempt.here, attempt.processes = tmp_path, 3
    said = "process 1 of 3 .on here. failed:\nTraceback of the loss" if name == "KeyError" else f"{name} it is"
    with pytest.raises(raised, match=f"^{said}$"):
        attempt.raise_failure()


def test_a_failure_is_told_before_the_group_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving may wait for processes that wait for this one; what fails then does not replace what failed first."""
    told: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def group(timeout: float) -> Iterator[None]:
        try:
            yield
        finally:
            told.append(json.loads((tmp_path / "rank-0.json").read_text()))
            raise RuntimeError("the others are gone")

    def fails(*given: Any) -> None:
        raise InputError("the loss is wrong")

    monkeypatch.setattr(worker, "_group", group)
    monkeypatch.setattr(worker, "_train", fails)
    monkeypatch.setattr(worker, "die_with_parents", lambda parents: None)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    (tmp_path / "assignment.pickle").write_bytes(pickle.dumps(SimpleNamespace(options=SimpleNamespace(timeout=9.0))))
    with pytest.raises(SystemExit):
        worker.main(str(tmp_path))
    assert [r["message"] for r in told] == ["the loss is wrong"]
    assert (told[0]["error"], told[0]["ours"], told[0]["lost"]) == ("InputError", True, False)
    assert json.loads((tmp_path / "rank-0.json").read_text()) == told[0]
