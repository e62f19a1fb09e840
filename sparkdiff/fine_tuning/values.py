"""What the phases of a fine-tuning hand to one another."""

import dataclasses
from collections.abc import Callable
from typing import Any

from sparkdiff.data import cache as caches
from sparkdiff.evaluation.acceptance import Judgement
from sparkdiff.evaluation.cached_parity import PARITY_ROWS
from sparkdiff.evaluation.data import Data
from sparkdiff.evaluation.scores import Score
from sparkdiff.fine_tuning.shared import Shared
from sparkdiff.fine_tuning.task import Task
from sparkdiff.objectives.objective import Metric, Objective
from sparkdiff.pipeline.network import Network
from sparkdiff.pipeline.parity import Parity
from sparkdiff.pipeline.plan import Plan
from sparkdiff.report import FineTuningSummary, Phases
from sparkdiff.stages.base import LabelStats
from sparkdiff.store.run_folder import RunFolder
from sparkdiff.training import monotone
from sparkdiff.training.distributed import number
from sparkdiff.training.recipes import Recipe
from sparkdiff.training.results import Trained


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A run's result: `model` is the original object itself where the decision is to keep it.

    Attributes:
        original: the pipeline that was fine-tuned.
        folders: of the run's trainings.
    """

    model: Any
    original: Any
    plan: Plan
    summary: FineTuningSummary
    folders: tuple[RunFolder, ...]


@dataclasses.dataclass(frozen=True)
class Goal:
    """The loss and the metric, and the labels that they were checked with.

    Attributes:
        label: the labels of the training rows.
        labels: the labels of all rows; None without a label column.
        warnings: about splits in which all rows have the same label.
    """

    label: LabelStats
    labels: LabelStats | None
    objective: Objective
    metric: Metric
    warnings: list[str]


@dataclasses.dataclass(frozen=True)
class Run:
    """The input of all phases after the cache.

    Attributes:
        shared, key: give the results that other fits on the same rows can use, too.
        network: the network of the original.
        computed: identifies the network before it sees a row.
        versions: of the tables that the rows come from, as far as their plans show them.
        divided: whether the validation rows are a share of the rows that were passed.
        comparedRows: largest number of rows compared with Spark.
    """

    task: Task
    phases: Phases
    shared: Shared
    key: tuple[Any, ...]
    cache: caches.Cache
    network: Network
    computed: dict[str, Any]
    data: Data
    goal: Goal
    versions: list[dict[str, str]] = dataclasses.field(default_factory=list)
    divided: bool = True
    comparedRows: int = PARITY_ROWS

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        return self.shared.once((name, self.key), make)


@dataclasses.dataclass(frozen=True)
class Measured:
    """The metric of a pipeline on each split that has rows, and its parity with Spark; None if it was not compared again."""

    scores: dict[str, Score]
    parity: Parity | None


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The result of training.

    Attributes:
        best: the metric (as a loss) that training measured for the chosen network.
        frozen: per parameter the number of entries that did not train, because too few rows have them.
        lost: a sentence for every restart after lost processes.
        unsaved: why a checkpoint could not be written; empty if all were written.
        cut: that maxSeconds ended training while candidates were still active; empty if not.
        recipes: the candidates.
        device: where it was trained, as text.
        fallbacks: what was done there where memory was short, and what else is slower than it could be.
        single: how far float32 moves the original's outputs; None in float64.
        processes: how many trained, where they were to be chosen; else None.
    """

    found: Trained
    best: float
    frozen: dict[str, int]
    lost: list[str]
    unsaved: str
    cut: str
    wishes: monotone.Wishes | None
    folder: RunFolder
    device: str
    fallbacks: list[str]
    single: Parity | None
    recipes: tuple[Recipe, ...]
    processes: number.ProcessNumber | None


@dataclasses.dataclass(frozen=True)
class Judged:
    """The decision about the trained network, its validation metric, and warnings about the decision."""

    judgement: Judgement
    tuned: Score
    warnings: list[str]
