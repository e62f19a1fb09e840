"""Nested pipelines, searches (models of CrossValidator and TrainValidationSplit) and formulas: their leaf stages, and
the same structure with other leaf stages.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyspark.ml import Estimator, Pipeline, PipelineModel, Transformer
from pyspark.ml.feature import OneHotEncoder, RFormulaModel
from pyspark.ml.param import Param, Params
from pyspark.ml.tuning import CrossValidatorModel, TrainValidationSplitModel

from sparkdiff import jvm
from sparkdiff.errors import InputError, kind_of
from sparkdiff.jvm.rformula import parts

Path = tuple[int, ...]
"""Position of a leaf stage in the nested pipelines. The model of a search has one `bestModel`, so it adds nothing to
the path.
"""
SEARCHES = (CrossValidatorModel, TrainValidationSplitModel)
"""Classes of the models of searches."""


class Holder:
    """A base class of models that contain a plain Spark model (`pipelineModel`), which computes their outputs."""

    pipelineModel: Any

    def copy(self, extra: Any = None) -> Any:
        """A copy that shares the plain model, unless `extra` sets a Param of one of its stages."""
        new: Any = super().copy(extra)  # type: ignore[misc]
        new.pipelineModel = with_stage_params(self.pipelineModel, extra or {})
        return new

    def _transform(self, dataset: Any) -> Any:
        return self.pipelineModel.transform(dataset)


def flatten(model: Any, path: Path = (), *, formulas: bool = True) -> list[tuple[Path, Any]]:
    """Leaf stages of a fitted pipeline with their positions in the nested pipelines.

    Args:
        model: a fitted pipeline or stage.
        path: its own position, in front of those of its stages.
        formulas: whether the parts of an RFormulaModel are leaf stages; if not, the RFormulaModel itself is one.

    Raises:
        InputError: a stage is not fitted; the message names it.
    """
    if isinstance(model, Estimator):
        old = "; one that Spark 2.2 or older has saved needed no fit, and newer versions load it as this Estimator: fit it anew"
        raise InputError(
            f"{type(model).__name__} {model.uid} isn't fitted: call fit() first, and pass its result"
            f"{old if type(model) is OneHotEncoder else ''}"
        )
    if not isinstance(model, Transformer):
        raise InputError(f"expected a fitted PipelineModel or stage, got {kind_of(model)}{_way_in(model)}")
    if (held := _held_stages(model, path)) is not None:
        return [leaf for place, stage in held for leaf in flatten(stage, place, formulas=formulas)]
    if formulas and type(model) is RFormulaModel and (inside := parts(model)) is not None:
        return [((*path, i), stage) for i, stage in enumerate(inside)]
    return [(path, model)]


def _held_stages(model: Any, path: Path) -> list[tuple[Path, Any]] | None:
    """Stages directly inside a pipeline, a search or a `Holder` at `path`, with their paths; None for other stages."""
    if isinstance(model, PipelineModel):
        return [((*path, i), stage) for i, stage in enumerate(model.stages)]
    if isinstance(model, SEARCHES):
        return [(path, model.bestModel)]
    return [(path, model.pipelineModel)] if isinstance(model, Holder) else None


def last_stage(given: Any) -> Any:
    """Last stage of a pipeline, fitted or not."""
    stages: Sequence[Any] = given.stages if isinstance(given, PipelineModel) else []
    if isinstance(given, Pipeline):
        stages = given.getStages() if given.isDefined(given.stages) else []
    return last_stage(stages[-1]) if stages else given


def _way_in(given: Any) -> str:
    """A hint how to turn this value into a fitted pipeline; empty if there is none."""
    package = type(given).__module__.partition(".")[0]
    if isinstance(given, (str, os.PathLike)):
        return ": load it with PipelineModel.load(path)"
    if isinstance(given, (list, tuple)):
        return ": create one from fitted stages with PipelineModel(stages)"
    if package in ("sklearn", "lightgbm", "xgboost"):
        return f": import a fitted tree model with sparkdiff.from_{package}(model)"
    return ""


def holders(model: Any, path: Path = ()) -> list[tuple[Path, Any]]:
    """Stages that contain the leaf stages (pipelines, searches, formulas), with the common path of their leaves."""
    if (held := _held_stages(model, path)) is not None:
        return [(path, model), *(holder for place, stage in held for holder in holders(stage, place))]
    return [(path, model)] if type(model) is RFormulaModel else []


def inside(stage: Any, into: Callable[[Any], bool] = lambda _stage: True) -> dict[str, Any]:
    """A stage and all stages that it holds (see `stages_within`), by uid; of several with the same uid the first one."""
    found: dict[str, Any] = {}
    for one in stages_within(stage, into):
        found.setdefault(one.uid, one)
    return found


def stages_within(stage: Any, into: Callable[[Any], bool] = lambda _stage: True) -> list[Any]:
    """A stage and all stages that it holds, at any depth, such as the classifier of a OneVsRest. A stage for which
    `into` is False is included, but not searched.

    Several may have the same uid: a fitted stage has the uid of its estimator.
    """
    seen: dict[int, Any] = {}  # a container may hold itself

    def walk(thing: Any) -> None:
        # A user's stage may have no uid: its __init__ may not call that of Params.
        is_stage = isinstance(thing, Params) and hasattr(thing, "uid")
        if id(thing) in seen or not (is_stage or isinstance(thing, (dict, list, tuple))):
            return
        seen[id(thing)] = thing
        if is_stage:
            thing = vars(thing) if into(thing) else ()
        for one in [*thing.values()] if isinstance(thing, dict) else thing:
            walk(one)

    walk(stage)
    return [thing for thing in seen.values() if isinstance(thing, Params)]


def with_leaves(model: Any, new: Mapping[Path, Any], path: Path = ()) -> Any:
    """The same structure as `model` with the leaf stages `new` at their positions. Parts without a new leaf stay the
    same objects.

    If the new leaf is a list of stages, the pipeline around it gets all of them; a search around it gets a pipeline of
    them. A `Holder` is replaced by its plain model. The model of a search keeps its class, uid, Params, metrics and
    sub-models. An RFormulaModel stays the same object: none of its parts has anything to train.
    """
    if isinstance(model, PipelineModel):
        made = [with_leaves(s, new, (*path, i)) for i, s in enumerate(model.stages)]
        if all(a is b for a, b in zip(made, model.stages, strict=True)):
            return model
        stages = [s for one in made for s in (one if isinstance(one, list) else [one])]
        return jvm.with_uid(PipelineModel(stages), model)
    if isinstance(model, SEARCHES):
        found = with_leaves(model.bestModel, new, path)
        best = PipelineModel(found) if isinstance(found, list) else found
        return model if best is model.bestModel else with_best(model, best, model.subModels)
    if isinstance(model, Holder):
        return with_leaves(model.pipelineModel, new, path)
    return new.get(path, model)


def with_stage_params(given: Any, params: dict[Param[Any], Any]) -> Any:
    """A pipeline, fitted or not, with Params set on copies of the stages that own them; Params of other stages change
    nothing.
    """
    if isinstance(given, Pipeline):
        return given.copy(params)
    if not isinstance(given, Transformer):
        return given
    owners = {param.parent for param in params}
    new = {path: s.copy(params) for path, s in flatten(given) if owners & {p.uid for p in (s, *stages_within(s))}}
    return with_leaves(given, new) if new else given


def plain(model: Any) -> Any:
    """The model with every FineTunerModel in it replaced by its plain pipeline.

    A CrossValidatorModel or TrainValidationSplitModel keeps its estimator as a Param, which may be a FineTuner; its
    `bestModel` runs without sparkdiff.

    Examples:
        >>> import sparkdiff
        >>> from pyspark.ml.evaluation import BinaryClassificationEvaluator
        >>> from pyspark.ml.tuning import ParamGridBuilder, TrainValidationSplit
        >>> tuner = sparkdiff.FineTuner(pipeline=pipeline, labelCol="label", maxEpochs=2)
        >>> grid = ParamGridBuilder().addGrid(tuner.learningRate, [1e-3, 1e-2]).build()
        >>> judge = BinaryClassificationEvaluator()
        >>> search = TrainValidationSplit(estimator=tuner, estimatorParamMaps=grid, evaluator=judge).fit(df)
        >>> sparkdiff.plain(search.bestModel).write().overwrite().save(f"{folder}/churn-tuned")
    """
    new = with_leaves(model, {})
    if isinstance(new, SEARCHES) and new.subModels is not None:
        models: list[Any] = [[plain(m) for m in f] if isinstance(f, list) else plain(f) for f in new.subModels]
        return new if models == new.subModels else with_best(new, new.bestModel, models)
    return new


def with_best(old: Any, best: Any, subModels: Any) -> Any:
    """A model of a search like `old` (uid, Params and metrics) with another best model and other sub-models.

    Does not use copy(), which fails without sub-models on Spark 4.0 and copies every stage.
    """
    if isinstance(old, CrossValidatorModel):
        new: Any = CrossValidatorModel(best, list(old.avgMetrics), subModels, list(old.stdMetrics))
    else:
        new = TrainValidationSplitModel(best, list(old.validationMetrics), subModels)
    return jvm.with_uid(new, old)
