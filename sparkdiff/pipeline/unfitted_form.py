"""The unfitted form of a fitted pipeline: the estimators that its stages came from, as far as the stages show them.

The Params of a fitted stage are those of its estimator, so the estimator can be made again: its class follows from the
name of the model's class, and its uid is the model's. Stages that were never fitted stay unchanged. A stage that does
not show the settings that it was fitted with is not fitted anew, nor are trees that Spark can't have grown with their
Params; `UnfittedForm.stages` has the reason.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from pyspark.ml import Estimator, Model, Pipeline, PipelineModel, Transformer
from pyspark.ml.param import Param
from pyspark.ml.wrapper import JavaParams
from pyspark.sql import DataFrame

from sparkdiff import jvm
from sparkdiff.errors import InputError
from sparkdiff.jvm import trees
from sparkdiff.jvm.nodes import Nodes
from sparkdiff.pipeline.nesting import SEARCHES, flatten, holders, plain, stages_within, with_best

MODULES = tuple(
    f"pyspark.ml.{m}" for m in ("feature", "classification", "regression", "clustering", "recommendation", "fpm")
)
NAMES = {"LocalLDAModel": "LDA", "DistributedLDAModel": "LDA"}
"""Estimators whose names do not follow from those of their models."""
WITHOUT_EFFECT = frozenset({"parallelism"})
"""Params of an estimator that do not affect its fits, so that its model may lack them."""
GROWN = "sparkdiff grew it as a part of another stage, whose loss its weights were trained on"
ESTIMATOR, TRANSFORMER, AS_FITTED = "estimator", "transformer", "as fitted"


def labels_decided(stage: Any) -> bool:
    """True if a stage was fitted, and labels of rows may have affected the fit. False for a formula, whose labelCol is
    an output.
    """
    fitted = isinstance(stage, Model) and type(stage).__name__ != "RFormulaModel"
    return fitted and (not type(stage).__module__.startswith("pyspark.ml.") or stage.hasParam("labelCol"))


def check_unfitted(given: Any, rowsAreNew: bool | None) -> list[str]:
    """Check that an unfitted pipeline holds no fitted stage that labels may have affected, because fitting the pipeline
    would not fit such a stage anew.

    Returns:
        a list with a warning if `rowsAreNew` is set and has no effect, because there are no such stages; else empty.

    Raises:
        InputError: there are such stages, and they may have been fitted with labels of held-out rows.
    """
    if not isinstance(given, Estimator):
        return []
    # This looks inside estimators, except a FineTuner, which checks its own pipeline.
    held = stages_within(given, lambda stage: isinstance(stage, Estimator) and not stage.hasParam("rowsAreNew"))
    leaves = [leaf for stage in held if isinstance(stage, Transformer) for _, leaf in flatten(stage)]
    seen = dict.fromkeys(leaf.uid for leaf in leaves if labels_decided(leaf))
    if seen and not rowsAreNew:
        raise InputError(
            f"{given.uid} isn't fitted, but holds {', '.join(seen)}, which may have been fitted with labels of the rows that "
            "decide: put the estimator in its place; or, if it was not fitted on these rows, set rowsAreNew=True"
        )
    idle = f"rowsAreNew=True has no effect: {given.uid} holds no stage that was fitted with labels"
    return [idle] if rowsAreNew and not seen else []


@dataclass(frozen=True)
class UnfittedStage:
    """A leaf stage and its unfitted form.

    Attributes:
        model: the fitted stage.
        stage: the stage in place of `model`: its estimator, or `model` itself.
        role: "estimator", "transformer" (a stage that fits nothing), or "as fitted" (it must not be fitted anew).
        reason: the reason why it is not fitted anew; for an estimator what is uncertain about its settings; else empty.
    """

    model: Any
    stage: Any
    role: str
    reason: str = ""

    @property
    def uid(self) -> str:
        return str(self.model.uid)

    @property
    def knows_labels(self) -> bool:
        """True if the stage is not fitted anew, although labels of rows may have affected its fit."""
        return self.role == AS_FITTED and (labels_decided(self.model) or self.reason == GROWN)


@dataclass(frozen=True)
class UnfittedForm:
    """The unfitted form of a fitted pipeline.

    Attributes:
        model: the fitted pipeline, in plain MLlib stages.
        estimator: a Pipeline for a PipelineModel, with the same nesting; for a single fitted stage its estimator.
        stages: the leaf stages in order.
        searches: uids of the models of CrossValidator and TrainValidationSplit in the pipeline; `estimator` contains
            the estimator with the best setting in place of the search.
    """

    model: Any
    estimator: Any
    stages: tuple[UnfittedStage, ...]
    searches: tuple[str, ...] = ()

    @property
    def learns(self) -> bool:
        """True if any stage is fitted anew."""
        return any(stage.role == ESTIMATOR for stage in self.stages)

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for each stage that stays as fitted, for each whose settings are uncertain, and for each search."""
        told = [f"{s.uid} stays as it is fitted: {s.reason}" for s in self.stages if s.role == AS_FITTED]
        unsure = [f"{s.uid}: {s.reason}" for s in self.stages if s.role == ESTIMATOR and s.reason]
        return (*told, *unsure, *(f"{uid}: its best setting is kept, and not searched again" for uid in self.searches))

    @property
    def refusal(self) -> str:
        """Reason why no stage is fitted anew; empty if one is."""
        why = "; ".join(self.notes) or "none of its stages is ever fitted"
        return "" if self.learns else f"{self.model.uid} can't be fitted anew: {why}"

    def check(self) -> None:
        """Raise InputError, with the reason, if no stage is fitted anew."""
        if self.refusal:
            raise InputError(self.refusal)


def unfitted_form(model: Any, keep: Mapping[str, str] = MappingProxyType({})) -> UnfittedForm:
    """The estimators that a fitted pipeline came from.

    Args:
        keep: reasons, by uid, for the stages that must not be fitted anew, as in `Task.kept_as_fitted`.
        model: a PipelineModel or a fitted stage; nested pipelines, a FineTunerModel and models of searches are opened.

    Raises:
        InputError: a stage is not fitted; the message names it.
    """
    flatten(model)  # refuses what isn't fitted
    model = plain(model)
    leaves = [stage for _, stage in flatten(model, formulas=False)]  # a formula is fitted as a whole
    uids = [stage.uid for stage in leaves]
    found = {stage.uid: _unfitted_stage(stage, uids, keep) for stage in leaves}
    searches = tuple(m.uid for _, m in holders(model) if isinstance(m, SEARCHES))
    return UnfittedForm(model, _form(model, found), tuple(found.values()), searches)


def refit(form: UnfittedForm, rows: DataFrame, params: dict[Param[Any], Any] | None = None) -> Any:
    """Fit the pipeline anew to these rows with Spark. The result is plain, with the nesting and uids of the fitted one.

    Args:
        params: {Param of a stage of `form.estimator`: value} in place of the stages' own values.

    Raises:
        InputError: there is nothing to fit, or Spark can't fit it to these rows; the message has the reason.
    """
    form.check()
    with jvm.as_input_error(f"{form.model.uid} can't be fitted anew to these rows"):
        new = form.estimator.fit(rows, params or {})
    return with_uids_of(form.model, new)


def with_uids_of(old: Any, new: Any) -> Any:
    """A pipeline that was fitted anew, with the uids of the pipeline that it replaces.

    Pipeline.fit gives a PipelineModel a new uid each time. The model of a search is built again around its new best
    model.
    """
    if isinstance(old, SEARCHES):
        return with_best(old, with_uids_of(old.bestModel, new), None)
    if isinstance(old, PipelineModel):
        stages = [with_uids_of(before, after) for before, after in zip(old.stages, new.stages, strict=True)]
        return PipelineModel(stages)._resetUid(old.uid)
    return new if new.uid == old.uid else new._resetUid(old.uid)


# The parts ------------------------------------------------------------------------------------------------------------


def _form(model: Any, found: dict[str, UnfittedStage]) -> Any:
    """The same nesting as a Pipeline of the unfitted leaf stages; `found` has these by uid."""
    if isinstance(model, PipelineModel):
        return Pipeline()._resetUid(model.uid).setStages([_form(stage, found) for stage in model.stages])
    if isinstance(model, SEARCHES):
        return _form(model.bestModel, found)
    return found[model.uid].stage


def _unfitted_stage(model: Any, uids: Sequence[str], keep: Mapping[str, str]) -> UnfittedStage:
    """The unfitted form of a leaf stage.

    Args:
        uids: uids of all leaf stages.
        keep: reasons, by uid, for the stages that must not be fitted anew.
    """
    if model.uid in keep:
        return UnfittedStage(model, model, AS_FITTED, keep[model.uid])
    if why := _why_as_fitted(model, uids):
        return UnfittedStage(model, model, AS_FITTED, why)
    if not isinstance(model, Model):
        return UnfittedStage(model, model, TRANSFORMER)
    estimator = estimator_of(model)
    unsure = estimator.hasParam("seed") and not estimator.isSet("seed")
    reason = "its seed isn't set, so that other random numbers may be drawn than for the fitted one" if unsure else ""
    return UnfittedStage(model, estimator, ESTIMATOR, reason)


def _why_as_fitted(model: Any, uids: Sequence[str]) -> str:
    """Reason why a stage must stay as it is fitted; empty if there is none."""
    name = type(model).__name__
    # sparkdiff.Grower's names for a stage that it added to the stage of another uid, for a part or for an entity.
    indexes = model.uid.endswith("_indexer")
    if any(model.uid.startswith(f"{head}_grown") or (indexes and model.uid.startswith(f"{head}_")) for head in uids):
        return GROWN
    if name == "Bucketizer" and _may_be_quantiles(model):
        return "a Bucketizer may have been a QuantileDiscretizer, whose numBuckets and relativeError it doesn't tell"
    if not isinstance(model, Model):
        return ""
    kind = estimator_class(type(model))
    if kind is None:
        return f"{type(model).__module__}.{name} has no estimator in pyspark.ml"
    if missing := untold(kind, type(model)):
        return f"{name} doesn't tell the settings {', '.join(missing)} of its {kind.__name__}"
    if model.uid.startswith("cntVecModel"):
        return "it was made from a vocabulary, and not fitted"
    if model.hasParam("featuresCol") and model.getOrDefault("featuresCol") == f"{model.uid}__margins":
        return "it is the link function of imported trees"
    return (
        f"Spark didn't grow its trees by its Params: {why}" if is_trees(model) and (why := why_not_grown(model)) else ""
    )


def _may_be_quantiles(bucketizer: Any) -> bool:
    """True if the splits may be those of a QuantileDiscretizer, whose outer ones are infinite."""
    given = [bucketizer.getOrDefault(name) for name in ("splits", "splitsArray") if bucketizer.isSet(name)]
    splits = given[0] if given and isinstance(given[0][0], list) else given
    return bool(splits) and all(math.isinf(s[0]) and math.isinf(s[-1]) for s in splits)


def estimator_class(model: type) -> Any:
    """Class of the estimator for a model class of pyspark.ml; None if there is none."""
    if model.__module__ not in MODULES:
        return None
    module, base = sys.modules[model.__module__], model.__name__.removesuffix("Model")
    names = [
        NAMES.get(model.__name__, base),
        base.replace("Classification", "Classifier"),
        base.replace("Regression", "Regressor"),
    ]
    found = [vars(module)[name] for name in names if name in vars(module)]
    return next((kind for kind in found if issubclass(kind, Estimator)), None)


def untold(estimator: type, model: type) -> list[str]:
    """Params of an estimator's class that its model's class lacks, although they affect the fit."""
    return sorted(_params(estimator) - _params(model) - WITHOUT_EFFECT)


def _params(kind: type) -> set[str]:
    return {name for name in dir(kind) if isinstance(getattr(kind, name, None), Param)}


def estimator_of(model: Any) -> Any:
    """Estimator with the uid and the Params, set and default, of a fitted stage whose class has all of them."""
    kind = estimator_class(type(model))
    estimator = kind()
    estimator = (
        jvm.set_uid(estimator, model.uid) if isinstance(estimator, JavaParams) else estimator._resetUid(model.uid)
    )
    given = {p.name: _own(v) for p, v in model._paramMap.items() if estimator.hasParam(p.name)}
    estimator._setDefault(**{n: _own(v) for n, v in jvm.defaults(model).items() if estimator.hasParam(n)})
    return estimator._set(**given)


def _own(value: Any) -> Any:
    """The value of a Param; a stage, such as the classifier of a OneVsRest, is copied, because its Params may be
    searched.
    """
    return value.copy() if isinstance(value, Estimator) else value


def is_trees(stage: Any) -> bool:
    """True if a fitted stage is a tree or an ensemble of trees."""
    return bool(stage.hasParam("maxBins") and stage.hasParam("maxDepth"))


def why_not_grown(stage: Any) -> str:
    """Reason why Spark can't have grown these trees with the Params of a fitted stage; empty if it can.

    Trees that were imported from another library have Params that did not grow them. Trees that Spark grows have some
    properties that follow from the Params; if one is missing, growing again with these Params would give other trees.
    Trees of scikit-learn may have all of these properties, because the Params then have their depth and number.
    """
    nodes = trees.read(stage)
    boosted, inner = trees.is_boosted(stage), ~nodes.leaf
    if boosted and (why := _why_not_boosted(stage, nodes)):
        return why
    if trees.is_ensemble(stage) and not boosted and nodes.trees != stage.getOrDefault("numTrees"):
        return f"it has {nodes.trees} trees, but numTrees={stage.getOrDefault('numTrees')}"
    if (deepest := int(nodes.depth().max())) > stage.getOrDefault("maxDepth"):
        return f"a tree has depth {deepest}, but maxDepth={stage.getOrDefault('maxDepth')}"
    if inner.any() and float(nodes.gain[inner].min()) <= 0:
        return "a tree has a split that gains nothing, which Spark does not make"
    if (most := _most_thresholds(nodes, together=not boosted)) >= stage.getOrDefault("maxBins"):
        return f"a feature is split at {most} places, but maxBins={stage.getOrDefault('maxBins')}"
    return ""


def _why_not_boosted(stage: Any, nodes: Nodes) -> str:
    """Reason why Spark can't have grown this boosted ensemble; empty if it can. The first tree has weight 1, all
    others the step size.

    Source: org.apache.spark.ml.tree.impl.GradientBoostedTrees.
    """
    weights, step = np.asarray(stage.treeWeights, np.float64), stage.getOrDefault("stepSize")
    if len(weights) > stage.getOrDefault("maxIter"):
        return f"it has {len(weights)} trees, but maxIter={stage.getOrDefault('maxIter')}"
    if not np.allclose(weights, [1.0, *[step] * (len(weights) - 1)], rtol=1e-12, atol=0):
        return f"its trees don't have the weights 1, {step:g}, {step:g}, ... of stepSize={step:g}"
    sizes = np.diff(nodes.offsets)
    return "its first tree is a constant, but not the others" if sizes[0] == 1 < sizes.max() else ""


def _most_thresholds(nodes: Nodes, *, together: bool) -> int:
    """Largest number of thresholds of one feature, in all trees `together` or in each tree; in Spark it is at most
    maxBins - 1.
    """
    at = nodes.continuous
    tree = np.repeat(np.arange(nodes.trees), np.diff(nodes.offsets))[at] * (not together)
    place = np.stack([tree, nodes.featureIndex[at], nodes.values[nodes.starts[at]]])
    distinct = np.unique(place, axis=1)
    _, counts = np.unique(distinct[:2], axis=1, return_counts=True)
    return int(counts.max(initial=0))
