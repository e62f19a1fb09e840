"""The text of a run's report: p-values, the interval, slices in the order of what matters, compatibility."""

from typing import Any

import pytest

from sparkdiff.report import p_value
from sparkdiff.report.sections import as_text
from sparkdiff.report.summary_sections import sections_of
from tests.support.made_up_runs import summary


def before_after(summary: Any) -> str:
    return as_text(sections_of(summary))


@pytest.mark.parametrize(
    ("p", "least", "text"),
    [
        (0.0249, 0.001, "p 0.025"),
        (0.0002, 0.001, "p < 0.001"),
        (0.0002, 0.00001, "p 0.0002"),
        (0.000002, 0.00001, "p < 1e-05"),
        (0.0002, 0.0025, "p < 0.001"),
    ],
)
def test_p_values_are_as_fine_as_the_level_needs(p: float, least: float, text: str) -> None:
    assert p_value(p, least) == text


def a_slice(value: Any, before: float, after: float, p: float | None, rows: int = 100) -> dict[str, Any]:
    return {
        "column": "country",
        "value": value,
        "rows": rows,
        "units": rows,
        "before": before,
        "after": after,
        "gain": before - after,
        "p": p,
    }


def test_the_interval_and_what_is_unknown_of_it() -> None:
    text = before_after(summary())
    assert "95% interval +10.00% to unknown of the best epoch, z 4.0, p < 0.001" in text
    assert "interval" not in before_after(summary(gainInterval=None))


def test_where_it_was_trained_is_told_unless_it_is_the_cpu() -> None:
    gpu, single = "cuda:0 (NVIDIA H200)", {"float32": {"maxRelDiff": {"margin": 3.14e-7}}}
    assert "trained" not in before_after(summary()) + before_after(summary(device="cpu", precision="float64"))
    assert f"\ntrained on {gpu}\n" in before_after(summary(device=gpu, precision="float64", parity={}))
    text = before_after(summary(device="cpu", precision="float32", parity=single))
    assert "trained on cpu in float32, which moves the original's outputs by up to 3.1e-07 of their size" in text


def test_the_worst_slices_come_first_and_the_untested_last() -> None:
    many = [a_slice(f"c{i}", 1.0, 1.0 - i / 100, 1.0) for i in range(12)]
    odd = [
        a_slice(None, 1.0, 1.2, 0.001),
        a_slice("tiny", 1.0, 3.0, None, rows=3),
        a_slice("none", 0.0, 0.0, None, rows=0),
    ]
    lines = before_after(summary(slices=many + odd)).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("slice"))
    assert lines[first + 1].split() == ["country", "=", "null", "100", "1", "1.2", "+20.0%", "0.001"]
    assert lines[first + 2].startswith("country = c0 ")
    assert lines[first + 9] == "and 6 slices with better results, or with too few rows (1)"
    assert lines[-1] == "warning: beware"
    few = before_after(summary(slices=odd))
    assert "too few rows" in few
    assert "none" not in few  # no row, nothing to say


def test_slices_show_growing_and_undefined_metrics() -> None:
    known = [("better", 0.7, 0.8, 0.1, 1.0), ("worse", 0.8, 0.7, -0.1, 0.01), ("rare", 0.6, 0.5, -0.1, None)]
    slices = [
        {"column": "country", "value": v, "rows": 100, "units": u, "before": b, "after": a, "gain": g, "p": p}
        for v, b, a, g, p, u in [(*k, 9) for k in known] + [("one class", None, None, None, None, 0)]
    ]
    slices.append({**slices[0], "value": "broken", "after": None, "gain": None, "p": 0.0})
    lines = before_after(summary(metric="areaUnderROC", metricDirection="larger", slices=slices)).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("slice"))
    shown = [line.split("= ")[1].split() for line in lines[first + 1 : first + 6]]
    assert shown == [
        ["broken", "100", "0.7", "undefined", "0.000"],
        ["worse", "100", "0.8", "0.7", "-12.5%", "0.010"],
        ["better", "100", "0.7", "0.8", "+14.3%", "1.000"],
        ["rare", "100", "0.6", "0.5", "-16.7%", "too", "few", "units"],
        ["one", "class", "100", "undefined", "undefined"],
    ]


def test_the_compatibility_in_a_line() -> None:
    found = {
        "labels": True,
        "changed": 0.031,
        "psi": 0.12,
        "correlation": 0.99,
        "calibration": {"measure": "expectedCalibrationError", "before": 0.04, "after": 0.012},
    }
    assert (
        "predictions of the best epoch: 3.1% of the labels change; PSI 0.120 (moderate), correlation 0.990; "
        "expectedCalibrationError 0.04 -> 0.012"
    ) in before_after(summary(compatibility=found))
    bare = before_after(
        summary(compatibility={**found, "labels": False, "psi": 0.3, "correlation": None, "calibration": None})
    )
    assert "3.1% move by more than a tenth; PSI 0.300 (large)\n" in bare
