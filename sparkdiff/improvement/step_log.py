"""Log of an improvement in its run folder: results of steps, and decisions that depend on the time, so that a resumed run has the
same result."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from pyspark.ml.util import DefaultParamsReader

from sparkdiff import jvm
from sparkdiff.evaluation.compatibility import Compatibility
from sparkdiff.evaluation.paired_rows import PairedRows
from sparkdiff.evaluation.row_margins import RecordedMargins
from sparkdiff.evaluation.scores import Score
from sparkdiff.evaluation.slices import SliceSums
from sparkdiff.evaluation.units import Costs, Units
from sparkdiff.growth import cost_table
from sparkdiff.improvement.arm_context import ArmContext, Measurement
from sparkdiff.improvement.arm_order import ArmOrder
from sparkdiff.improvement.baseline import Baseline
from sparkdiff.improvement.candidate import Candidate, CandidateRecipe, Step
from sparkdiff.machine import atomic_files
from sparkdiff.pipeline.network import Network
from sparkdiff.pipeline.parity import Parity
from sparkdiff.proof.decision import FoldComparison
from sparkdiff.store import files

T = TypeVar("T")
DECISIONS = "decisions.json"
KEPT = (FoldComparison, PairedRows, Units, Costs, SliceSums, Compatibility, Baseline, ArmOrder)
"""Classes of the objects that a log may hold in addition to steps; for safety, no other objects are loaded from its files."""


class StepLog:
    """Log of the steps of an improvement.

    Args:
        folder: folder of the run; None if nothing is to be stored.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder

    def skip_reason(self, arm: str, number: int, why: Callable[[], str]) -> str:
        """Reason why a step is skipped; empty if it runs. The reason is read from the log, or computed by `why` and logged."""
        if self.folder is None:
            return why()
        if (self._place(arm, number) / "step.json").exists():
            return ""
        path = self.folder / DECISIONS
        known = files.read_undamaged(path, lambda: {k: str(v) for k, v in files.read_object(path).items()}) or {}
        name = self._place(arm, number).name
        if name not in known and (found := why()):
            known[name] = found
            files.write_bytes(path, json.dumps(known, sort_keys=True).encode())
        return known.get(name, "")

    def read_or_make(self, name: str, make: Callable[[], T]) -> T:
        """Return the logged result of `make`, or call `make` and log its result.

        The logged result is used because `make` may depend on the time, and decide differently in a resumed run.
        """
        if self.folder is None:
            return make()
        path = self.folder / f"{name}.pt"

        def read() -> list[T]:
            with torch.serialization.safe_globals([*KEPT]):
                return [torch.load(path, weights_only=True)]

        found = files.read_undamaged(path, read)
        if found is None:
            files.save_mappable(path, make())
            found = read()
        return found[0]

    def has(self, name: str) -> bool:
        """True if the log has a result of `read_or_make` with this name."""
        return self.folder is not None and (self.folder / f"{name}.pt").exists()

    def _place(self, arm: str, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"step-{number}-{arm}"

    def write(self, step: Step) -> None:
        """Write a step into its own folder, which is written as a whole or not at all."""
        if self.folder is None:
            return
        place = self._place(step.arm, step.number)
        with atomic_files.new_folder(place) as temporary:
            temporary.mkdir(mode=0o700)
            told: dict[str, Any] = {
                f.name: getattr(step, f.name) for f in dataclasses.fields(step) if f.name != "candidates"
            }
            told["candidates"] = []
            for i, c in enumerate(step.candidates):
                found = c.found
                parity = None if found.parity is None else dataclasses.asdict(found.parity)
                shown = {name: getattr(c, name) for name in ("name", "changes", "exact", "value", "seconds")}
                told["candidates"].append(shown | {"making": dataclasses.asdict(c.making), "parity": parity})
                c.model.write().save(jvm.stores.address(temporary / f"model-{i}"))
                jvm.stores.take(temporary / f"model-{i}")
                files.save_mappable(temporary / f"figures-{i}.pt", _figures(found))
            files.write_bytes(temporary / "step.json", json.dumps(told).encode())
            shutil.rmtree(place, ignore_errors=True)  # an incomplete folder of a store

    def read(self, context: ArmContext, arm: str, number: int) -> Step | None:
        """Read a step that an earlier, interrupted run has logged; None if there is no such step.

        Args:
            context: context of the exploring rows.
        """
        if self.folder is None:
            return None
        place = self._place(arm, number)
        return (
            files.read_undamaged(place, lambda: _read(context, arm, place)) if (place / "step.json").exists() else None
        )


def _read(context: ArmContext, arm: str, place: Path) -> Step:
    told = files.read_object(place / "step.json")
    candidates = tuple(
        Candidate(
            arm,
            c["name"],
            _measurement(context, place, i, c["parity"]),
            CandidateRecipe.of(c["making"]),
            c["changes"],
            c["exact"],
            c["value"],
            c["seconds"],
        )
        for i, c in enumerate(told.pop("candidates"))
    )
    return files.check_types(Step(candidates=candidates, **told))


def _figures(found: Measurement) -> dict[str, Any]:
    scores = {k: (s.blocks, s.weights, s.below, s.sign) for k, s in found.scores.items()}
    return {"scores": scores, "rows": (found.recorded.keys, found.recorded.margins, found.recorded.labels)}


def _measurement(context: ArmContext, place: Path, i: int, parity: dict[str, Any] | None) -> Measurement:
    where = jvm.stores.address(place / f"model-{i}")
    model: Any = DefaultParamsReader.loadParamsInstance(where, jvm.ml_context(jvm.session()))
    figures = torch.load(place / f"figures-{i}.pt", weights_only=True)
    task = context.task(model)
    network = Network(task.cut.graph, task.cut.live)
    return Measurement(
        task,
        {k: Score(*s) for k, s in figures["scores"].items()},
        RecordedMargins(network, *figures["rows"]),
        None if parity is None else Parity(**parity),
        cost_table.of_model(model),
    )
