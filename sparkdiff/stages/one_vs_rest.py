"""OneVsRest: one binary classifier per class; the class with the largest score is predicted."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparkdiff import jvm
from sparkdiff.stages.affine import Affine, AffineForm, MatrixProduct, NotAffineError, Parameters
from sparkdiff.stages.base import REGISTRY, SUPPORT, FeatureStats, LabelStats, class_name, columns_of, register
from sparkdiff.stages.constraints import Constraint
from sparkdiff.stages.forest import Trees
from sparkdiff.stages.predictor import Predictor, first_largest, lead
from sparkdiff.stages.trees import ClassifyingTrees
from sparkdiff.tensors.rows import Rows


@register("pyspark.ml.classification.OneVsRestModel")
class OneVsRest(MatrixProduct, Predictor):
    """rawPrediction = each model's rawPrediction of its class 1; prediction = the class with the largest one.

    The margin is (n, 2 k): k entries of rawPrediction, then the margins of the k models (log-odds; for a LinearSVC its
    margin). Its own loss is the sum of the models' own losses, computed from the latter. Spark never shows a softmax
    of rawPrediction.

    Source: pyspark.ml.classification.OneVsRestModel._transform.
    """

    SHOWN = ("rawPredictionCol", "predictionCol")
    refusals = ("only one model", "a model that stays in Spark", "models with columns or classes of their own")
    label_cols = ("predictionCol",)
    probable = False
    fitted_loss = "oneVsRest"

    def __init__(self, models: Sequence[Predictor], *, shown: tuple[str, ...], by_array: bool):
        super().__init__()
        self.models = nn.ModuleList(models)
        self.classes, self.shown, self.by_array = len(models), shown, by_array

    @property
    def margins(self) -> int:
        return 2 * self.classes

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        return all(m.differentiable for m in self._models())

    @classmethod
    def from_spark(cls, stage: Any) -> "OneVsRest":
        models: list[Any] = [REGISTRY[class_name(m)].from_spark(m) for m in stage.models]
        # Older Sparks use Python's max, in which NaN is the largest only in first place. Newer ones use array_argmax,
        # in which NaN is never the largest, and only scores > -inf count.
        return cls(
            models, shown=cls.shown_by(stage), by_array="array_argmax" in type(stage)._transform.__code__.co_names
        )

    @classmethod
    def refuses(cls, stage: Any) -> str | None:
        if len(stage.models) < 2:
            return "it has only one model, so there is nothing to predict"
        for model in stage.models:
            module = REGISTRY.get(class_name(model))
            if module is None or not issubclass(module, Predictor):
                return f"its model {model.uid} ({type(model).__name__}) cannot be translated to torch"
            if (why := module.refuses(model)) is not None:
                return f"its model {model.uid} must stay in Spark: {why}"
            for param in ("featuresCol", "rawPredictionCol"):
                own, whole = columns_of(model, (param,)), columns_of(stage, (param,))
                if own != whole:
                    return (
                        f"its model {model.uid} has {param}={own[0] if own else ''!r}, but the OneVsRestModel "
                        f"has {whole[0] if whole else ''!r}: Spark's Python and Scala code treat this "
                        "differently; set both to the same value"
                    )
            if int(model.numClasses) != 2:
                return f"its model {model.uid} has {model.numClasses} classes instead of two"
        return None

    def margin(self, x: Rows) -> Tensor:  # type: ignore[override]  # one input column; (n, 2 k)
        raws, margins = zip(*(_raw_and_margin(m, x) for m in self._models()), strict=True)
        return torch.stack([*raws, *margins], 1)

    def _models(self) -> list[Predictor]:
        return list(self.models)  # type: ignore[arg-type]

    def affine_form(self, p: Parameters, slope: Tensor, widths: Sequence[int]) -> AffineForm:
        parts: list[AffineForm] = []
        for j, model in enumerate(self._models()):
            if isinstance(model, Trees) or not isinstance(model, Affine) or model.margin_link == "softmax":
                raise NotAffineError("only log-odds are the rawPrediction of their models")
            parts.append(model.affine_form(_of(p, j), slope, widths))
        slopes = [torch.cat([part.slopes[0] for part in parts] * 2, -1)]
        constant = torch.cat([torch.as_tensor(part.constant) for part in parts] * 2, -1)

        def back(gradients: list[Tensor], constants: Tensor, room: Parameters) -> None:
            k = len(parts)
            for j, part in enumerate(parts):
                both = [g[..., j : j + 1] + g[..., k + j : k + j + 1] for g in (gradients[0], constants)]
                part.back([both[0]], both[1], _of(room, j))

        return AffineForm(slopes, constant, back)

    def class_scores(self, margin: Tensor) -> Tensor:
        return margin[:, : self.classes]

    def columns(self, margin: Tensor) -> tuple[Tensor, ...]:
        return self.only_shown(self.class_scores(margin), self.decision(margin))

    def decision(self, margin: Tensor) -> Tensor:
        scores = self.class_scores(margin)
        if not self.by_array:
            return first_largest(scores).to(margin.dtype)
        best, found = torch.where(scores.isnan(), -torch.inf, scores).max(1)
        return torch.where(best > -torch.inf, found, -1).to(margin.dtype)

    def decision_margin(self, margin: Tensor) -> Tensor:
        return self.class_scores(margin)

    def boundary(self, margin: Tensor) -> Tensor:
        return lead(self.class_scores(margin))

    def own_rows(self, margin: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        """Sum over the classes of the loss of the class's model (this class against the rest), per row (n,)."""
        own = margin[:, self.classes :]
        index = label.nan_to_num().clamp(0, self.classes - 1).long()  # a row of weight 0 may hold anything
        mine = F.one_hot(index, self.classes).to(own.dtype)
        if self._models()[0].own_loss()[0] == "hinge":
            return (1 - (2 * mine - 1) * own).clamp_min(0).sum(1)
        return (F.softplus(own) - mine * own).sum(1)

    # The models' facts about their parameters -------------------------------------------------------------------------

    def _each(self, values: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {f"models.{j}.{name}": v for j, of in enumerate(values) for name, v in of.items()}

    def constraints(self) -> dict[str, Constraint]:
        return self._each([m.constraints() for m in self._models()])

    def entry_mask(self) -> dict[str, Tensor]:
        return self._each([m.entry_mask() for m in self._models()])

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        found = [dict(m.units(x, _two(y, j))) for j, m in enumerate(self._models())]
        return self._each(
            [
                of | dict.fromkeys(m.positive, torch.ones((), dtype=torch.float64))
                for of, m in zip(found, self._models(), strict=True)
            ]
        )

    def supported(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        return self._each(
            [
                # The training rows in a leaf aren't known here; the number of rows that it was fitted on replaces them.
                {"leaves": _fitted_on(m) >= SUPPORT} if isinstance(m, Trees) else m.supported(x, _two(y, j))
                for j, m in enumerate(self._models())
            ]
        )

    def has_bounds(self) -> bool:
        return any(m.has_bounds() for m in self._models())

    def project_(self) -> None:
        for m in self._models():
            m.project_()

    @property
    def feature_axis(self) -> dict[str, int]:  # type: ignore[override]
        return self._each([m.feature_axis for m in self._models()])

    @property
    def optional(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset(f"models.{j}.{name}" for j, m in enumerate(self._models()) for name in m.optional)

    def observe(self, x: FeatureStats, values: Mapping[int, Tensor]) -> None:
        for m in self._models():
            m.observe(x, values)

    def critical_rows(self, row: Tensor) -> Tensor:
        return torch.cat([m.critical_rows(row) for m in self._models()])

    def nominal_features(self) -> Tensor:
        return torch.cat([m.nominal_features() for m in self._models()]).unique()

    def check_domain(self, uid: str) -> None:
        for j, m in enumerate(self._models()):
            m.check_domain(f"{uid}, class {j}")

    def to_spark(self, stage: Any) -> Any:
        models = [module.to_spark(model) for module, model in zip(self._models(), stage.models, strict=True)]
        return jvm.with_uid(type(stage)(models=models), stage)


def _raw_and_margin(model: Predictor, x: Rows) -> tuple[Tensor, Tensor]:
    """rawPrediction of class 1 and log-odds (for a LinearSVC its margin) of a model, (n,) each."""
    if isinstance(model, ClassifyingTrees):
        total = model.total(x)
        raw, margin = model.scores(total)[0][:, 1], model.margin_from_sums(total)
    else:
        margin = model.margin(x)
        raw = margin if not model.wide else margin[:, 1]
    return raw, margin if margin.ndim == 1 else margin[:, 1] - margin[:, 0]


def _of(p: Parameters, j: int) -> Parameters:
    """Parameters of model j, by their own names."""
    head = f"models.{j}."
    return {name.removeprefix(head): value for name, value in p.items() if name.startswith(head)}


def _two(y: LabelStats, j: int) -> LabelStats:
    """Statistics of the labels for model j: class j against the rest."""
    if j >= len(y.classes):
        return LabelStats(0.0, 0.0, 0.0, 0.0, torch.tensor([int(y.classes.sum()), 0]))
    mine, total = int(y.classes[j]), int(y.classes.sum())
    share = mine / max(total, 1)
    return LabelStats(
        share, (share * (1 - share)) ** 0.5, float(mine == total), float(mine > 0), torch.tensor([total - mine, mine])
    )


def _fitted_on(trees: Trees) -> Tensor:
    """Number of rows that each leaf was fitted on, broadcast over its entries."""
    rows = torch.from_numpy(trees.nodes.rawCount[trees.nodes.leaf].copy())
    return rows.view(-1, *[1] * (trees.leaves.ndim - 1)).expand_as(trees.leaves)
