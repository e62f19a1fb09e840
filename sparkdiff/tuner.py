"""FineTuner and FineTunerModel: fine-tuning as a pyspark.ml Estimator and the Model that it returns."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
from pathlib import PurePosixPath
from typing import Any

from pyspark.ml import Estimator, Model, Pipeline, PipelineModel
from pyspark.ml.param import Param, Params
from pyspark.ml.tuning import CrossValidatorModel, TrainValidationSplitModel
from pyspark.ml.util import DefaultParamsReader, DefaultParamsWriter, MLReadable, MLReader, MLWritable, MLWriter
from pyspark.sql import DataFrame

from sparkdiff import jvm
from sparkdiff.errors import InputError
from sparkdiff.finetune import fine_tune, prepare
from sparkdiff.options import Options, callable_name
from sparkdiff.report import Phases
from sparkdiff.splits import SPLIT, TRAIN, Source, check_columns, with_splits
from sparkdiff.summary import FineTuningSummary

FIELDS = {f.name: f for f in dataclasses.fields(Options)}


def _with_params(cls: type) -> type:
    """Give the class a Param, a getter and a setter for every option."""

    def accessors(name: str) -> tuple[Any, Any]:
        def get(self: Any) -> Any:
            return self.getOrDefault(name)

        def set_(self: Any, value: Any) -> Any:
            return self.setParams(**{name: value})

        get.__doc__, set_.__doc__ = f"Value of {name} or its default.", f"Set {name}: {FIELDS[name].metadata['help']}."
        return get, set_

    for name, field in FIELDS.items():
        setattr(cls, name, Param(Params._dummy(), name, field.metadata["help"]))  # type: ignore[no-untyped-call]
        capital = name[0].upper() + name[1:]
        get, set_ = accessors(name)
        setattr(cls, "get" + capital, get)
        setattr(cls, "set" + capital, set_)
    return cls


@_with_params
class FineTuner(Estimator, MLWritable, MLReadable):  # type: ignore[type-arg]
    """Fine-tune a fitted Spark ML pipeline on the loss that its owner cares about.

    Args:
        pipeline: a fitted PipelineModel or single fitted stage; an unfitted Pipeline is fitted first, on the training rows.
        **params: see `sparkdiff.options.Options`, or `FineTuner().explainParams()`.

    `fit(df)` returns a `FineTunerModel` whose `pipelineModel` is plain Spark ML.

    Raises:
        InputError: an option is unknown, of a wrong type or out of bounds; all of them are named.
    """

    pipeline: Param[Any] = Param(Params._dummy(), "pipeline", "fitted PipelineModel or stage, or unfitted Pipeline")  # type: ignore[no-untyped-call]

    def __init__(self, *, pipeline: Any = None, **params: Any):
        super().__init__()
        self._setDefault(**{name: _listed(getattr(Options(), name)) for name in FIELDS})
        self.setParams(pipeline=pipeline, **params)

    def setParams(self, *, pipeline: Any = None, **params: Any) -> FineTuner:
        """Set Params by name."""
        resolved = Options.of(params)
        self._set(**{name: _listed(getattr(resolved, name)) for name in params})
        return self if pipeline is None else self.setPipeline(pipeline)

    def setPipeline(self, value: Any) -> FineTuner:
        """Set the pipeline to fine-tune."""
        return self._set(pipeline=value)  # type: ignore[return-value]

    def getPipeline(self) -> Any:
        """The pipeline to fine-tune."""
        return self.getOrDefault("pipeline")

    def options(self) -> Options:
        """The resolved options."""
        return Options.of({p.name: v for p, v in self._paramMap.items() if p.name in FIELDS})

    def _fit(self, dataset: DataFrame) -> FineTunerModel:
        if not self.isSet("pipeline"):
            raise InputError("FineTuner has no pipeline: FineTuner(pipeline=model)")
        jvm.session()
        if not hasattr(dataset, "isStreaming"):
            raise InputError(f"fit() wants a Spark DataFrame, got {type(dataset).__name__}")
        options, model = self.options(), plain(self.getPipeline())
        sources = [Source(dataset)]
        if isinstance(model, Pipeline):
            model = fit_on_training_rows(model, sources, options)
        elif isinstance(model, Estimator):
            raise InputError(f"{model.uid} isn't fitted: pass what its fit() returns, or put it into a Pipeline")
        outcome = fine_tune(prepare(model, options), sources, Phases(options.verbosity > 0))
        return self._copyValues(FineTunerModel(outcome.model, model, outcome.summary))  # type: ignore[return-value]

    def write(self) -> MLWriter:
        return _TunerWriter(self)

    @classmethod
    def read(cls) -> MLReader[FineTuner]:
        return _TunerReader(cls)


def _listed(value: Any) -> Any:
    """A tuple as list: pyspark's explainParams can't show tuples."""
    return list(value) if isinstance(value, tuple) else value


def fit_on_training_rows(pipeline: Pipeline, sources: list[Source], options: Options) -> PipelineModel:
    """Fit an unfitted pipeline on the rows that will train, never on those that decide."""
    for source in sources:
        check_columns(source.df, options)
    dealt = with_splits(sources, options)
    held = [df.where(df[SPLIT] == TRAIN).select(*_original(s, df)) for s, df in zip(sources, dealt, strict=True)]
    rows = held[0]
    for other in held[1:]:
        rows = rows.unionByName(other)
    try:
        return pipeline.fit(rows)
    except jvm.SparkError as e:
        raise InputError(f"{pipeline.uid} can't be fitted on the training rows: {jvm.cause(e)}") from e


def _original(source: Source, df: DataFrame) -> list[Any]:
    return [df["`" + c.replace("`", "``") + "`"] for c in source.df.columns]


class FineTunerModel(Model, MLWritable, MLReadable):  # type: ignore[type-arg]
    """What fine-tuning returns.

    Attributes:
        pipelineModel: plain Spark ML; the original object itself where the decision was to keep it.
        originalModel: what was fine-tuned.
        summary: before and after, decision, history.
    """

    def __init__(self, pipelineModel: Any, originalModel: Any, summary: FineTuningSummary):
        super().__init__()
        self.pipelineModel, self.originalModel, self.summary = pipelineModel, originalModel, summary

    def _transform(self, dataset: DataFrame) -> DataFrame:
        return self.pipelineModel.transform(dataset)  # type: ignore[no-any-return]

    def copy(self, extra: Any = None) -> FineTunerModel:
        """A copy; the pipelines are shared, since they are never changed."""
        return self._copyValues(
            FineTunerModel(self.pipelineModel, self.originalModel, self.summary)._resetUid(self.uid), extra
        )  # type: ignore[return-value]

    def write(self) -> MLWriter:
        return _ModelWriter(self)

    @classmethod
    def read(cls) -> MLReader[FineTunerModel]:
        return _ModelReader(cls)


def plain(model: Any) -> Any:
    """The model with every FineTunerModel in it replaced by the plain pipeline that it holds."""
    if isinstance(model, FineTunerModel):
        return model.pipelineModel
    if isinstance(model, PipelineModel):
        stages = [plain(s) for s in model.stages]
        if any(a is not b for a, b in zip(stages, model.stages, strict=True)):
            return jvm.with_uid(PipelineModel(stages), model)
    if isinstance(model, (CrossValidatorModel, TrainValidationSplitModel)):
        new = jvm.with_uid(model.copy(), model)
        new.bestModel, new.subModels = plain(model.bestModel), _plain_all(model.subModels)
        return new
    return model


def _plain_all(models: Any) -> Any:
    return [_plain_all(m) for m in models] if isinstance(models, list) else plain(models)


def _inside(path: str, name: str) -> str:
    return str(PurePosixPath(path) / name) if "://" not in path else path.rstrip("/") + "/" + name


def _named(name: str) -> Any:
    """The object `module:qualname`.

    Raises:
        InputError: there is none.
    """
    module, _, path = name.partition(":")
    try:
        return functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as e:
        raise InputError(f"loss={name} can't be found ({e}): put its module on the Python path") from e


class _TunerWriter(jvm.Writer):
    def __init__(self, tuner: FineTuner):
        super().__init__()
        self.tuner = tuner

    def saveImpl(self, path: str) -> None:
        tuner, options = self.tuner, self.tuner.options()
        params = {name: v for name, v in options.asdict().items() if tuner.isSet(name)}
        if callable(options.loss):
            name = callable_name(options.loss)
            if not hasattr(options.loss, "__qualname__") or "<" in name or _named(name) is not options.loss:
                raise InputError(f"loss={name} can't be saved: define it as a function at the top of a module")
            params["loss"] = {"callable": name}
        given = tuner.getPipeline() if tuner.isSet("pipeline") else None
        DefaultParamsWriter.saveMetadata(
            tuner, path, self.sc, {"params": params, "pipeline": given is not None}, paramMap={}
        )
        if given is not None:
            given.write().save(_inside(path, "pipeline"))


class _TunerReader(jvm.Reader):
    def __init__(self, cls: type[FineTuner]):
        super().__init__()
        self.cls = cls

    def load(self, path: str) -> FineTuner:
        meta = DefaultParamsReader.loadMetadata(path, self.sc)
        params = meta["params"]
        if isinstance(params.get("loss"), dict):
            params["loss"] = _named(params["loss"]["callable"])
        pipeline = (
            DefaultParamsReader.loadParamsInstance(_inside(path, "pipeline"), self.sc) if meta["pipeline"] else None
        )
        return self.cls(pipeline=pipeline, **params)._resetUid(meta["uid"])  # type: ignore[no-any-return]


class _ModelWriter(jvm.Writer):
    def __init__(self, model: FineTunerModel):
        super().__init__()
        self.model = model

    def saveImpl(self, path: str) -> None:
        model = self.model
        summary = json.dumps(dataclasses.asdict(model.summary))
        DefaultParamsWriter.saveMetadata(model, path, self.sc, {"summary": summary}, paramMap={})
        model.pipelineModel.write().save(_inside(path, "pipelineModel"))
        model.originalModel.write().save(_inside(path, "originalModel"))


class _ModelReader(jvm.Reader):
    def __init__(self, cls: type[FineTunerModel]):
        super().__init__()
        self.cls = cls

    def load(self, path: str) -> FineTunerModel:
        meta = DefaultParamsReader.loadMetadata(path, self.sc)
        models: list[Any] = [
            DefaultParamsReader.loadParamsInstance(_inside(path, n), self.sc)
            for n in ("pipelineModel", "originalModel")
        ]
        summary = FineTuningSummary(**json.loads(meta["summary"]))
        if summary.decision != "tuned":
            models[0] = models[1]
        return self.cls(models[0], models[1], summary)._resetUid(meta["uid"])  # type: ignore[no-any-return]
