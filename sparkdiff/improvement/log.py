"""What an improvement has done, in its run folder: the result of each step, and what the clock decided."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pyspark.ml.util import DefaultParamsReader

from sparkdiff import jvm
from sparkdiff.evaluation.ledger import LedgerTrial
from sparkdiff.evaluation.recorded import Recorded
from sparkdiff.evaluation.scores import Score
from sparkdiff.growth import costs
from sparkdiff.improvement import order
from sparkdiff.improvement.baseline import Baseline
from sparkdiff.improvement.candidate import Candidate, Step
from sparkdiff.improvement.ground import Ground, Measurement
from sparkdiff.improvement.order import ArmOrder
from sparkdiff.machine import whole
from sparkdiff.pipeline.network import Network
from sparkdiff.pipeline.parity import Parity
from sparkdiff.store import files

DECISIONS = "decisions.json"
BASELINE = "baseline.json"
ORDER = "order.json"


class StepLog:
    """The steps of an improvement.

    Args:
        folder: of the run; None where nothing is to be kept.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder

    def skipped(self, arm: str, number: int, why: Callable[[], str]) -> str:
        """Why a step does not run, empty if it does: as the log says, or as `why` decides now."""
        if self.folder is None:
            return why()
        if (self._place(arm, number) / "step.json").exists():
            return ""
        path = self.folder / DECISIONS
        known: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        name = self._place(arm, number).name
        if name not in known and (found := why()):
            known[name] = found
            files.write_bytes(path, json.dumps(known, sort_keys=True).encode())
        return known.get(name, "")

    def baseline(self, find: Callable[[], Baseline]) -> Baseline:
        """The comparison that `find` makes, or what it found before an interruption."""
        if self.folder is None:
            return find()
        path = self.folder / BASELINE
        if path.exists():
            return Baseline(**json.loads(path.read_text(encoding="utf-8")))
        found = find()
        files.write_bytes(path, json.dumps(dataclasses.asdict(found)).encode())
        return found

    def order(self, find: Callable[[], ArmOrder]) -> ArmOrder:
        """The order of the arms that `find` makes, or that of the run before an interruption: the store may have grown since."""
        if self.folder is None:
            return find()
        path = self.folder / ORDER
        if path.exists():
            return order.of_json(json.loads(path.read_text(encoding="utf-8")))
        found = find()
        files.write_bytes(path, json.dumps(order.as_json(found)).encode())
        return found

    def _place(self, arm: str, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"step-{number}-{arm}"

    def write(self, step: Step) -> None:
        """Keep a step; a folder that is complete, or none."""
        if self.folder is None:
            return
        place = self._place(step.arm, step.number)
        with whole.new_folder(place) as temporary:
            temporary.mkdir(mode=0o700)
            told: dict[str, Any] = {
                f.name: getattr(step, f.name)
                for f in dataclasses.fields(step)
                if f.name not in ("gains", "trials", "candidates")
            }
            told |= {"trials": [list(t) for t in step.trials], "candidates": []}
            for i, c in enumerate(step.candidates):
                found = c.found
                parity = None if found.parity is None else dataclasses.asdict(found.parity)
                told["candidates"].append(
                    {"name": c.name, "column": c.column, "changes": c.changes, "exact": c.exact, "parity": parity}
                )
                c.model.write().save(jvm.stores.address(temporary / f"model-{i}"))
                jvm.stores.take(temporary / f"model-{i}")
                files.save_mappable(temporary / f"figures-{i}.pt", _figures(found))
            files.save_mappable(temporary / "gains.pt", step.gains)
            files.write_bytes(temporary / "step.json", json.dumps(told).encode())
            shutil.rmtree(place, ignore_errors=True)  # of a store, which had only a part of it

    def read(self, ground: Ground, arm: str, number: int) -> Step | None:
        """A step of an earlier run of the same request; None if it did not end."""
        if self.folder is None or not ((place := self._place(arm, number)) / "step.json").exists():
            return None
        told = json.loads((place / "step.json").read_text(encoding="utf-8"))
        candidates = tuple(
            Candidate(
                arm, c["name"], _measurement(ground, place, i, c["parity"]), c["column"], c["changes"], c["exact"]
            )
            for i, c in enumerate(told["candidates"])
        )
        return Step(
            arm, number, torch.load(place / "gains.pt", weights_only=True), [LedgerTrial(*t) for t in told["trials"]], candidates,
            told["hope"], told["says"], told["trains"], told["seconds"], told["ended"], told["learned"],
        )  # fmt: skip


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
