"""The record of a run in plain values, for the store of runs, reports and experiment trackers; and the summary of a
fit.
"""

import contextlib
import dataclasses
import importlib.metadata
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparkdiff.machine.atomic_files import write_bytes
from sparkdiff.report.page import page
from sparkdiff.report.sections import Displayable, Section
from sparkdiff.report.summary_sections import headline, sections_of

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True, repr=False)
class RunRecord(Displayable):
    """The options, the course and the results of a run as plain values: numbers, strings, and lists and dicts of them.

    A candidate is one of several copies of the parameters that train side by side. Reference rows are rows on which the
    result must not be significantly worse.

    Attributes:
        decision: "tuned" or "kept original".
        reason: the reason for the decision.
        metric, metricDirection: the name of the metric, and "smaller" or "larger", whichever is better.
        metrics: {"train" | "validation" | "test": {"before", "after"}}, None for a kind without rows; "reference" only
            if there are reference rows. `after` is the value of the returned pipeline.
        gain: (before - after) / abs(before) on validation rows, negated if larger is better, so that positive is better. If
            the metric is zero before, (before - after) / 1e-12.
        z: mean gain of the chosen epoch divided by its block-wise standard error; 0.0 if the original is best.
        p: p-value of the gain, from a bootstrap of the maximum over all epochs and candidates.
        candidates, diverged: number of trained candidates, and of those that diverged (loss or metric not finite) and
            stopped.
        device, precision: the device that trained, such as "cpu" or "cuda:0 (NVIDIA H200)", and the dtype of rows in
            training.
        processes: with numProcesses="auto" {"number", "why", "milliseconds" (of a step, by the number of processes)}; else None.
        records: the rows of the history, one per epoch and candidate; epoch 0 is the original. With numFolds they have the key
            "fold": 1 for the training run that chooses the settings, 2 and more for those without the rows of a fold that
            decides, 0 for the final training run on all rows.
        parity: agreement of the network with Spark: {"before" training, "after" write-back}, each with rows, largest
            relative difference per column, and label disagreements; with precision="float32" also "float32": the same
            comparison of the original's margins in float32 and in float64, on validation rows.
        saved: result of saving and loading the pipeline, running it as a whole on raw rows, and comparing its outputs
            bit by bit with those of the pipeline in memory: {"rows", "columns", "leftOut" (columns that differ between
            two runs of the pipeline in memory)}, "differs" (the differences, as text) and "why" (why nothing was
            compared). Empty for a fit that is part of another fit.
        stages: change of each parameter, in natural units (the parameter's typical scale): {"uid.parameter":
            {"largest", "rootMeanSquare"}}.
        timings: seconds per phase.
        stream: name of the library that read the cache.
        cache: {"hit", "fingerprint", "rows" (by split)}, and "versions" if Spark's plan of the rows shows versions of
            tables: [{"split", "table", "versionAsOf" (of Delta; "timestampAsOf", "snapshotId", "asOf" if an option of
            the reader sets these)}]. With reuseStages also "stagesRead", the uids of the first stages whose output rows
            an earlier run had kept, and "stagesKept", the uids of the first stages whose output rows this run has kept.
        warnings: reasons to doubt the figures.
        folds: with numFolds an entry per fold that decides, {"fold", "rows", "before", "after", "epochs", "recipe"}:
            the metrics, on the fold's rows, of the pipeline to beat and of the pipeline tuned without these rows, and
            how the latter was trained. `metrics["validation"]`, and all other figures on validation rows, then describe
            the out-of-fold rows.

    The other attributes describe the best epoch of all candidates, accepted or not, on validation rows; they are None
    or empty if no epoch gained:

        gainInterval: [low, high], the 95% interval of its gain as a share of the original's metric; it accounts for the choice
            among all epochs and candidates. None for a bound means unbounded.
        slices: an entry per value of a guardCol, see `sparkdiff.evaluation.slices.Change`.
        reference: the same for the reference rows; None if there are no reference rows.
        compatibility: see `sparkdiff.evaluation.compatibility.Compatibility`.
    """

    __module__ = "sparkdiff"

    decision: str
    reason: str
    metric: str
    metricDirection: str
    metrics: dict[str, dict[str, float] | None]
    gain: float
    z: float
    p: float
    records: list[dict[str, Any]]
    parity: dict[str, Any]
    stages: dict[str, dict[str, float]]
    timings: dict[str, float]
    stream: str
    cache: dict[str, Any]
    options: dict[str, Any]
    versions: dict[str, str]
    warnings: list[str]
    gainInterval: list[float | None] | None = None
    slices: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    reference: dict[str, Any] | None = None
    compatibility: dict[str, Any] | None = None
    candidates: int | None = None
    diverged: int | None = None
    device: str | None = None
    precision: str | None = None
    folds: list[dict[str, Any]] | None = None
    processes: dict[str, Any] | None = None
    saved: dict[str, Any] = dataclasses.field(default_factory=dict)

    def toHTML(self, path: str | Path) -> None:
        """Write the report of the run as one page that needs no other file and no network.

        Raises:
            InputError: the extra `report` is not installed.
            OSError: the file can't be written.
        """
        write_bytes(Path(path), page(self.asdict(), self.records).encode())

    def asdict(self) -> dict[str, Any]:
        """All values except the history (`records`), ready for JSON: None in place of numbers that are not finite."""
        return {f.name: _finite(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "records"}

    def _headline(self) -> str:
        return headline(self.asdict())

    def _sections(self) -> Iterator[Section]:
        yield from sections_of(self.asdict())


class FineTuningSummary(RunRecord):
    """The summary of one fine-tuning run.

    `print(summary)` and notebooks show the before/after table; `history` is a pandas DataFrame. The other attributes
    are those of `sparkdiff.report.RunRecord`: decision, reason, metrics, gain, warnings and so on.
    """

    __module__ = "sparkdiff"

    @property
    def history(self) -> "pd.DataFrame":
        """The rows of `records` as a pandas DataFrame, one per epoch and candidate; epoch 0 is the original."""
        import pandas as pd

        return pd.DataFrame(self.records)


def versions() -> dict[str, str]:
    """Versions of the packages that the result depends on; a package that isn't installed is left out."""
    out = {"python": sys.version.split()[0]}
    for name in ("sparkdiff", "pyspark", "torch", "numpy", "pyarrow", "petastorm"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            out[name] = importlib.metadata.version(name)
    return out


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
