"""Log of an improvement in its run folder: the result of each step, and the decisions of the clock."""

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
from sparkdiff.evaluation.recorded import Recorded
from sparkdiff.evaluation.scores import Score
from sparkdiff.evaluation.slices import SliceSums
from sparkdiff.evaluation.units import Costs, Units
from sparkdiff.growth import costs
from sparkdiff.improvement.baseline import Baseline
from sparkdiff.improvement.candidate import Candidate, Making, Step
from sparkdiff.improvement.ground import Ground, Measurement
from sparkdiff.improvement.order import ArmOrder
from sparkdiff.machine import whole
from sparkdiff.pipeline.network import Network
from sparkdiff.pipeline.parity import Parity
from sparkdiff.proof.decision import FoldComparison
from sparkdiff.store import files

T = TypeVar("T")
DECISIONS = "decisions.json"
KEPT = (FoldComparison, PairedRows, Units, Costs, SliceSums, Compatibility, Baseline, ArmOrder)
"""Classes of the objects that a log keeps beside steps; no other objects are made from its files."""


class StepLog:
    """The steps of an improvement.

    Args:
        folder: folder of the run; None if nothing is to be kept.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder

    def skipped(self, arm: str, number: int, why: Callable[[], str]) -> str:
        """Reason why a step does not run, empty if it does: from the log, or else from `why`, which is then logged."""
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

    def kept(self, name: str, make: Callable[[], T]) -> T:
        """Return the result of `make`, from this run or before an interruption: the clock may decide differently now."""
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
        """True if `kept` has this value from an earlier run."""
        return self.folder is not None and (self.folder / f"{name}.pt").exists()

    def _place(self, arm: str, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"step-{number}-{arm}"

    def write(self, step: Step) -> None:
        """Write a step: a complete folder, or none."""
        if self.folder is None:
            return
        place = self._place(step.arm, step.number)
        with whole.new_folder(place) as temporary:
            temporary.mkdir(mode=0o700)
            told: dict[str, Any] = {
                f.name: getattr(step, f.name) for f in dataclasses.fields(step) if f.name != "candidates"
            }
            told["candidates"] = []
            for i, c in enumerate(step.candidates):
                found = c.found
                parity = None if found.parity is None else dataclasses.asdict(found.parity)
                shown = {name: getattr(c, name) for name in ("name", "changes", "exact", "value", "seconds")}
                told["candidates"].append(shown | {"making": c.making.asdict(), "parity": parity})
                c.model.write().save(jvm.stores.address(temporary / f"model-{i}"))
                jvm.stores.take(temporary / f"model-{i}")
                files.save_mappable(temporary / f"figures-{i}.pt", _figures(found))
            files.write_bytes(temporary / "step.json", json.dumps(told).encode())
            shutil.rmtree(place, ignore_errors=True)  # an incomplete folder of a store

    def read(self, ground: Ground, arm: str, number: int) -> Step | None:
        """A step of an earlier run of the same request; None if it did not end."""
        if self.folder is None:
            return None
        place = self._place(arm, number)
        return (
            files.read_undamaged(place, lambda: _read(ground, arm, place)) if (place / "step.json").exists() else None
        )


def _read(ground: Ground, arm: str, place: Path) -> Step:
    told = files.read_object(place / "step.json")
    candidates = tuple(
        Candidate(
            arm, c["name"], _measurement(ground, place, i, c["parity"]), Making.of(c["making"]), c["changes"], c["exact"],
            c["value"], c["seconds"],
        )
        for i, c in enumerate(told.pop("candidates"))
    )  # fmt: skip
    return files.check_types(Step(candidates=candidates, **told))


def _figures(found: Measurement) -> dict[str, Any]:
    scores = {k: (s.blocks, s.weights, s.below, s.sign) for k, s in found.scores.items()}
    return {"scores": scores, "rows": (found.recorded.keys, found.recorded.margins, found.recorded.labels)}


def _measurement(ground: Ground, place: Path, i: int, parity: dict[str, Any] | None) -> Measurement:
    where = jvm.stores.address(place / f"model-{i}")
    model: Any = DefaultParamsReader.loadParamsInstance(where, jvm.ml_context(jvm.session()))
    figures = torch.load(place / f"figures-{i}.pt", weights_only=True)
    task = ground.task(model)
    network = Network(task.cut.graph, task.cut.live)
    return Measurement(
        task, {k: Score(*s) for k, s in figures["scores"].items()}, Recorded(network, *figures["rows"]),
        None if parity is None else Parity(**parity), costs.of_model(model),
    )  # fmt: skip
