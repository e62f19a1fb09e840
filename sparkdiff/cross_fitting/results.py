"""What the folds of a cross-fitting found, and what ships."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sparkdiff.data.splits import TEST, TRAIN, VALIDATION
from sparkdiff.evaluation.acceptance import Judgement
from sparkdiff.evaluation.compatibility import Compatibility
from sparkdiff.evaluation.out_of_fold import FoldSums
from sparkdiff.evaluation.paired_rows import PairedRows
from sparkdiff.evaluation.slices import SliceSums
from sparkdiff.evaluation.units import Costs
from sparkdiff.fine_tuning.values import Fitted, Measured, Run
from sparkdiff.training.recipes import Recipe


@dataclasses.dataclass(frozen=True)
class FoldResult:
    """The result of one fold.

    Attributes:
        number: from 1 on.
        before, after: of the fold's original and of its tuned pipeline.
        rows: of the fold, as both pipelines see them.
        training: what the tuned pipeline costs on the rows that trained it.
        weights: per split the exponent of the power of two that divides the weights.
        slices: None without guardCols.
        costs: see `unseen_errors.costs`.
        chosen: the candidate and its epoch; None where no epoch gained on the validation rows of this training.
        level, stricter: see `acceptance.needed`.
        warnings: about the rows, only of the first fold, and about the training.
    """

    number: int
    run: Run
    before: Measured
    after: Measured
    fitted: Fitted
    rows: PairedRows
    training: Costs
    slices: SliceSums | None
    compatibility: Compatibility
    costs: Tensor
    chosen: tuple[Recipe, int] | None
    level: float
    stricter: int
    warnings: list[str]

    @property
    def weights(self) -> dict[str, int]:
        return self.run.cache.manifest["weights"]  # type: ignore[no-any-return]

    def entry(self) -> dict[str, Any]:
        """What the summary tells."""
        parity = {"before": self.before.parity, "after": None if self.chosen is None else self.after.parity}
        recipe, epochs = self.chosen or ("", 0)
        return {
            "fold": self.number, "rows": self.run.cache.rows(TEST), "before": self.before.scores[TEST].value,
            "after": self.after.scores[TEST].value, "recipe": str(recipe), "epochs": epochs,
            "parity": {k: dataclasses.asdict(p) for k, p in parity.items() if p is not None},
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Shipped:
    """The pipeline fitted on all rows, and its training on all rows.

    Attributes:
        before, after: the same where the original ships.
        fitted: None where the out-of-fold rows keep the original, so that nothing was trained.
        failure: why the trained pipeline cannot ship, whatever the out-of-fold rows say; empty if it can.
        doubts: columns beside the loss that can't be compared.
    """

    run: Run
    model: Any
    before: Measured
    after: Measured
    fitted: Fitted | None
    judgement: Judgement
    failure: str
    doubts: Sequence[str] = ()

    @property
    def tuned(self) -> bool:
        return self.judgement.accepted and not self.failure


def factor(fold: FoldResult, split: str, top: int) -> float:
    """What makes sums over the rows of a split those in units of 2 ** top."""
    return math.ldexp(1.0, fold.weights.get(split, 0) - top)


def sums_of(done: Sequence[FoldResult]) -> tuple[list[FoldSums], int]:
    """What the folds show, in one unit of weight, and the exponent of the power of two that it is."""
    top = max([0, *(e for f in done for e in f.weights.values())])

    def gains(fold: FoldResult, split: str) -> Tensor:
        before, after = (m.scores[split].blocks for m in (fold.before, fold.after))
        return (before - after) * factor(fold, split, top)

    def one(fold: FoldResult) -> FoldSums:
        own, times = fold.before.scores[TEST], factor(fold, TEST, top)
        elsewhere = gains(fold, TRAIN) + gains(fold, VALIDATION)
        return FoldSums(gains(fold, TEST), own.weights * times, elsewhere)

    return [one(fold) for fold in done], top
