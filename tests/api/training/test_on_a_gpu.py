"""The whole way through the public interface with a GPU that isn't there: the same result, and it says where it was trained."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pyspark.ml import PipelineModel
from pyspark.sql import DataFrame

from sparkdiff import Events, FineTunerModel, InputError
from sparkdiff.tensors.device import CPU, Place, gpus
from sparkdiff.training.distributed import choice
from tests.support import fake_gpu
from tests.support.small_data import tune, weights

FAKE = Place(torch.device(fake_gpu.NAME, 0))
SHOWN = "fakegpu:0 (a GPU that isn't there)"


def test_auto_takes_it_keeps_that_and_finds_the_same(
    df: DataFrame,
    numeric: PipelineModel,
    tuned_numeric: FineTunerModel,
    shared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choice, "gpus", lambda: 1)
    monkeypatch.setattr(choice, "place", lambda kind, precision, local: CPU if kind == "cpu" else FAKE)
    monkeypatch.setattr(choice.StepTimer, "seconds_per_step", lambda clock: 2e-3 if clock.at.on_cpu else 5e-4)
    said: list[str] = []
    listener = Events()
    listener.on_phase = lambda name, seconds, detail: said.append(detail)  # type: ignore[method-assign]
    begun, options = fake_gpu.copies, {"runId": "gpu", "checkpointDir": str(tmp_path), "callbacks": [listener]}
    found = tune(numeric, df, shared, **options)
    assert fake_gpu.copies > begun
    line = f"device='auto' takes {SHOWN}: a step takes 0.5 ms there, 2 ms on cpu"
    assert line in said
    assert any(detail.endswith(f"on validation rows; {line}") for detail in said)  # where the phase ends
    assert found.summary.decision == tuned_numeric.summary.decision
    before, after = weights(tuned_numeric.pipelineModel), weights(found.pipelineModel)
    assert before.keys() == after.keys()
    for name, x in before.items():
        np.testing.assert_allclose(after[name], x, rtol=1e-6, atol=1e-6, err_msg=name)
    ours, theirs = (s.summary.history["validationMetric"] for s in (found, tuned_numeric))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    assert f"trained on {SHOWN}" in str(found.summary)
    assert (tmp_path / "gpu" / choice.DeviceNote.FILE).exists()
    again = tune(numeric, df, shared, **options, device="cpu")  # which is no other run
    assert (again.summary.device, again.summary.gain) == (SHOWN, found.summary.gain)


@pytest.mark.skipif(gpus() > 0, reason="there is a GPU")
def test_none_is_said_before_anything_is_cached(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    with pytest.raises(InputError, match=r"^device='cuda', but .*; or set device='cpu'$"):
        tune(numeric, df, folder, device="cuda")
    assert not folder.exists()
