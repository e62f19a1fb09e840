"""The before/after table as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def p_value(p: float) -> str:
    """A p-value as a reader wants it."""
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"


def before_after(summary: Mapping[str, Any]) -> str:
    """The table of a run's summary: the metric on train, validation and test rows, and the decision under it."""
    metric, direction = summary["metric"], summary["metricDirection"]
    rows = [(f"{metric} ({direction} is better)", "original", "tuned", "change")]
    for split, values in summary["metrics"].items():
        if values is not None:
            before, after = values["before"], values["after"]
            change = (after - before) / max(abs(before), 1e-12)
            rows.append((split, f"{before:.5g}", f"{after:.5g}", f"{change:+.1%}"))
    widths = [max(len(r[i]) for r in rows) for i in range(4)]
    lines = [
        "  ".join([r[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(r[1:], widths[1:], strict=True))]) for r in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    lines.append(
        f"decision: {summary['decision']} (gain {summary['gain']:+.2%}, z {summary['z']:.1f}, {p_value(summary['p'])})"
    )
    lines.append(summary["reason"])
    lines += [f"warning: {w}" for w in summary["warnings"]]
    return "\n".join(lines)
