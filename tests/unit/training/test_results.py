"""Candidates of several settings that train together find what those of each setting would find alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sparkdiff.data.stream.batches import Stream
from sparkdiff.tensors.team import ALONE
from sparkdiff.training.distributed.worker import work
from sparkdiff.training.recipes import Recipe
from sparkdiff.training.training_run import Training
from tests.support.train_in_processes import Case, assignment, dense, write_cache

CALM = [Recipe(1e-4, 0.0)]
STOPS = [Recipe(0.3, 0.0), Recipe(1e-3, 1e-3, noise=0.3), Recipe(1e-3, 1e-3, mask=0.2)]  # the first one at once
DIVERGES = [Recipe(1e6, 0.0), Recipe(3e-3, 1e-3, noise=0.3)]
AVERAGED = [Recipe(1e-2, 1e-3, ema=0.9), Recipe(1e-4, 0.0)]  # the second one is another setting's, too
SLOW = [Recipe(1e-3, 1e-3), Recipe(1.0, 1e-2, "lbfgs")]


def trained(make: Any, recipes: list[Recipe], folder: Path, **options: Any) -> Training:
    case = Case(make, 6, tuple(recipes), {"batchSize": 8, "maxEpochs": 8, "patience": 1, **options})
    write_cache(folder, case)
    a = assignment(case, folder)
    training = a.training()
    with Stream(a.cache, backend=a.backend, inMemory=a.inMemory, seed=a.options.seed) as stream:
        work(a, training, stream, ALONE, lambda training: None)
    return training


@pytest.mark.parametrize("options", [{}, {"optimizer": "sgd", "gradientClip": 0.5}], ids=str)
def test_each_setting_finds_what_it_would_find_alone(options: dict[str, Any], tmp_path: Path) -> None:
    kind = options.get("optimizer", "adam")
    settings = [
        [r if r.optimizer == "lbfgs" else Recipe(**{**vars(r), "optimizer": kind}) for r in each]
        for each in (CALM, STOPS, DIVERGES, AVERAGED, SLOW)
    ]
    every = list(dict.fromkeys(r for each in settings for r in each))
    together = trained(dense, every, tmp_path / "together", **options)
    for i, each in enumerate(settings):
        alone, among = trained(dense, each, tmp_path / f"{i}", **options), together.among(each)
        assert among.columns == alone.columns
        torch.testing.assert_close(
            torch.stack(among.gains), torch.stack(alone.gains), rtol=1e-8, atol=1e-9, equal_nan=True
        )
        assert [(h["epoch"], h["candidate"], h["recipe"]) for h in among.history] == [
            (h["epoch"], h["candidate"], h["recipe"]) for h in alone.history
        ]
        assert among.best.column == alone.best.column
        torch.testing.assert_close(among.best.flat, alone.best.flat, rtol=1e-8, atol=1e-9)


def test_who_is_left_draws_as_before(tmp_path: Path) -> None:
    """Noise depends on the settings of the whole training, and not on which candidates have stopped."""
    alone = trained(dense, STOPS, tmp_path / "alone")
    assert alone.standings[0].column == -1
    long = trained(dense, STOPS, tmp_path / "long", patience=8)
    for k in (1, 2):
        few = [h["validationMetric"] for h in alone.history if h["candidate"] == k]
        assert len(few) > 3
        assert few == pytest.approx([h["validationMetric"] for h in long.history if h["candidate"] == k][: len(few)])
