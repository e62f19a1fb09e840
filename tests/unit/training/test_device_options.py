"""`device` decides where a training runs and `precision` what it computes: the first may change between two parts of a run."""

from sparkdiff.options import Options
from sparkdiff.training.preparation import request_of


def test_a_run_may_go_on_elsewhere_but_not_in_another_precision() -> None:
    begun = request_of(Options(), "rows", {})
    assert "device" not in begun and begun["precision"] == "float64"
    assert request_of(Options.of({"device": "cuda"}), "rows", {}) == begun
    assert request_of(Options.of({"precision": "float32"}), "rows", {}) == begun | {"precision": "float32"}
