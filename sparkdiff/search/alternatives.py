"""Alternative stages at one place of a pipeline; a search chooses one. A fitted pipeline never holds them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pyspark.ml import Estimator, Pipeline, Transformer
from pyspark.ml.param import Param, Params

from sparkdiff import jvm
from sparkdiff.errors import InputError, kind_of

OUTPUTS = ("outputCol", "outputCols", "predictionCol")
"""Params with the names of a stage's output columns; the first that is set counts, else the first with a default."""
INPUTS = ("inputCol", "inputCols", "featuresCol")


class Alternatives(Estimator, jvm.Persistent):  # type: ignore[type-arg]
    """Stages from which a search chooses one; see `alternatives`."""

    __module__ = "sparkdiff"

    stages: Param[Any] = Param(Params._dummy(), "stages", "the stages; None does not count as one")  # type: ignore[no-untyped-call]

    def __init__(self, stages: Sequence[Any] = ()):
        super().__init__()
        self._set(stages=[*stages])

    def getStages(self) -> list[Any]:
        """The stages; None stands for no stage."""
        return self.getOrDefault("stages")  # type: ignore[no-any-return]

    def names(self) -> list[str]:
        """A name for each stage: its class, with its position if several have the same class."""
        kinds = ["None" if stage is None else type(stage).__name__ for stage in self.getStages()]
        return [f"{kind} {i}" if kinds.count(kind) > 1 else kind for i, kind in enumerate(kinds)]

    def copy(self, extra: Any = None) -> "Alternatives":
        """A copy with the same uid and copies of the stages, on which `extra` sets their Params."""
        new: Alternatives = super().copy({p: v for p, v in (extra or {}).items() if p.parent == self.uid})
        new._set(stages=[stage if stage is None else stage.copy(extra) for stage in new.getStages()])
        return new

    def _fit(self, dataset: Any) -> Any:
        raise InputError(
            f"{self.uid} holds alternatives ({', '.join(self.names())}), of which sparkdiff.Search chooses one: pass the "
            "pipeline as its estimator"
        )

    def saved_parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The names of the stages in order, with None for no stage, and the stages by name, as `write` saves them."""
        names = [None if stage is None else f"stage-{i}" for i, stage in enumerate(self.getStages())]
        return {"stages": names}, {name: s for name, s in zip(names, self.getStages(), strict=True) if name is not None}

    @classmethod
    def from_parts(cls, values: Mapping[str, Any], stage: jvm.Load) -> "Alternatives":
        """Alternatives with the stages that `saved_parts` returned; their uid is set afterwards.

        Args:
            values: the saved values, read from JSON.
            stage: loads a saved stage, given its name.
        """
        return cls([None if name is None else stage(name) for name in values["stages"]])


def alternatives(*stages: Any) -> Alternatives:
    """Stages from which `sparkdiff.Search` chooses one, at this place of a Pipeline.

    Args:
        *stages: Estimators, Transformers or Pipelines that write the same columns; the first is the default. None
            leaves the place empty: the stages after it then read what the other alternatives would have read.

    Raises:
        InputError: there are fewer than two, one is no stage, None or the same stage is given twice, they write different
            columns, or None is given and it can't be told what later stages read then. The message says why.

    Examples:
        >>> import sparkdiff
        >>> from pyspark.ml import Pipeline
        >>> from pyspark.ml.feature import RobustScaler
        >>> assembler, standard, pca, head = pipeline.getStages()
        >>> robust = RobustScaler(inputCol="numbers", outputCol="scaled")
        >>> scaler = sparkdiff.alternatives(standard, robust)
        >>> steps = Pipeline(stages=[assembler, scaler, pca, head])
        >>> space = {pca.k: sparkdiff.integer(1, 5)}  # Search(steps, space=space, ...) also chooses the scaler
    """
    if len(stages) < 2:
        raise InputError(f"alternatives() takes two stages or more, got {len(stages)}; None does not count as a stage")
    for stage in stages:
        if stage is not None and not isinstance(stage, (Estimator, Transformer)):
            raise InputError(f"alternatives(): {kind_of(stage)} is not a pipeline stage")
    given = [stage for stage in stages if stage is not None]
    if len(given) < len(stages) - 1 or not given:
        raise InputError("alternatives() has None twice, and once is enough")
    if len({stage.uid for stage in given}) < len(given):
        raise InputError("alternatives() has the same stage twice: construct a new stage, as a copy has the same uid")
    wanted = [(type(stage).__name__, outputs(stage)) for stage in given]
    for name, columns in wanted:
        if columns != wanted[0][1]:
            raise InputError(
                f"the options of alternatives() write different columns: {wanted[0][0]} writes {_column_names(wanted[0][1])}, "
                f"{name} writes {_column_names(columns)}; set the same outputCol on each, because later stages read one column"
            )
    if len(given) < len(stages):
        _instead_of(given)
    return Alternatives(stages)


def outputs(stage: Any) -> list[str]:
    """The columns of a stage that later stages read; for a Pipeline, those of its last stage."""
    return _columns(stage, OUTPUTS, -1)


def inputs(stage: Any) -> list[str]:
    """The columns that a stage reads; for a Pipeline, those of its first stage."""
    return _columns(stage, INPUTS, 0)


def _columns(stage: Any, names: Iterable[str], end: int) -> list[str]:
    """The columns named by the first of these Params that is set, else that has a default.

    Args:
        stage: a stage, a Pipeline, or Alternatives, which have the columns of their first stage.
        names: names of the Params, the preferred one first.
        end: for a Pipeline, the position of the stage whose columns are returned.
    """
    if isinstance(stage, Pipeline):
        inner = _inner(stage)
        return _columns(inner[end], names, end) if inner else []
    if isinstance(stage, Alternatives):
        return _columns(next(s for s in stage.getStages() if s is not None), names, end)
    for name in sorted(names, key=lambda name: not (stage.hasParam(name) and stage.isSet(name))):
        if stage.hasParam(name) and stage.isDefined(name):  # default outputs contain the uid, so they differ
            found = stage.getOrDefault(name)
            return [found] if isinstance(found, str) else [*found]
    return []


def _column_names(columns: Sequence[str]) -> str:
    return ", ".join(map(repr, columns)) or "columns that no Param names"


def _instead_of(given: Sequence[Any]) -> dict[str, str]:
    """The column that later stages read in place of each output column if a place is left empty: {output column: input
    column}.

    Raises:
        InputError: the columns can't be determined.
    """
    read, write = inputs(given[0]), outputs(given[0])
    for stage in given:
        if inputs(stage) != read:
            raise InputError(
                f"alternatives() with None: {type(given[0]).__name__} reads {_column_names(read)}, {type(stage).__name__} reads "
                f"{_column_names(inputs(stage))}, so it can't be told what stages read where there is none"
            )
    if not read or len(read) != len(write) or any(stage.hasParam("predictionCol") for stage in given):
        raise InputError(
            f"alternatives() with None: {type(given[0]).__name__} reads {_column_names(read)} and writes {_column_names(write)}, "
            "so it can't be told what later stages read in place of each column"
        )
    return dict(zip(write, read, strict=True))


# With one alternative chosen ------------------------------------------------------------------------------------------


def places(estimator: Any) -> list[Alternatives]:
    """All alternatives in an estimator, outer ones before those inside them."""
    if isinstance(estimator, Alternatives):
        return [estimator, *(found for stage in estimator.getStages() for found in places(stage))]
    return [found for stage in _inner(estimator) for found in places(stage)]


def _inner(stage: Any) -> list[Any]:
    """The stages of a Pipeline; for a FineTuner, the Pipeline that it tunes."""
    if isinstance(stage, Pipeline):
        return [*stage.getStages()] if stage.isDefined("stages") else []
    given = stage.getOrDefault("pipeline") if _tunes(stage) else None
    return [given] if isinstance(given, Pipeline) else []


def _tunes(stage: Any) -> bool:
    return isinstance(stage, Params) and stage.hasParam("pipeline") and stage.isDefined("pipeline")


def with_choices(estimator: Any, choices: Mapping[str, int]) -> Any:
    """The estimator with one stage in place of each `Alternatives` in it; the same object if it has none.

    Args:
        estimator: a stage, a Pipeline, Alternatives, or a FineTuner of an unfitted Pipeline.
        choices: uid of the alternatives -> position of the stage; the default is the first.
    """
    if not places(estimator):
        return estimator
    if isinstance(estimator, Alternatives):
        estimator = Pipeline(stages=[estimator])
    new, _ = _stage_with_choices(estimator, choices, {})
    return new


def _stage_with_choices(stage: Any, choices: Mapping[str, int], names: dict[str, str]) -> tuple[Any, dict[str, str]]:
    """A stage without alternatives that reads columns by their new `names`, and the names that apply after it."""
    if stage is None:
        return None, names
    if isinstance(stage, Alternatives):
        inner = stage.getStages()
        one = inner[choices.get(stage.uid, 0)]
        if one is None:
            empty = _instead_of([s for s in inner if s is not None])
            return None, {**names, **{column: names.get(read, read) for column, read in empty.items()}}
        return _stage_with_choices(one, choices, names)
    if isinstance(stage, Pipeline) and _inner(stage):
        stages = []
        for part in stage.getStages():
            new, names = _stage_with_choices(part, choices, names)
            if new is not None:
                stages.append(new)
        return Pipeline()._resetUid(stage.uid).setStages(stages), names
    if _tunes(stage) and _inner(stage):
        new, names = _stage_with_choices(stage.getOrDefault("pipeline"), choices, names)
        return stage.copy({stage.getParam("pipeline"): new}), names
    return _with_input_columns(stage, names) if names else stage, names


def _with_input_columns(stage: Any, names: Mapping[str, str]) -> Any:
    """The stage with other input columns.

    Raises:
        InputError: the stage names a column within a text, where the name can't be replaced.
    """
    new: dict[Any, Any] = {}
    for param in stage.params:
        if not stage.isDefined(param):
            continue
        value = stage.getOrDefault(param)
        if param.name in ("statement", "formula") and any(name in str(value) for name in names):
            raise InputError(
                f"{stage.uid} names {', '.join(n for n in names if n in value)} in its {param.name}, but alternatives() includes "
                "None, which writes no such column: give alternatives() two Pipelines, one with this column, and one in whose "
                f"{param.name} it is not named"
            )
        if not param.name.endswith(("Col", "Cols")) or param.name.startswith(
            ("output", "prediction", "probability", "raw")
        ):
            continue
        if isinstance(value, str) and value in names:
            new[param] = names[value]
        elif isinstance(value, list) and any(name in names for name in value):
            new[param] = [names.get(name, name) for name in value]
    return stage.copy(new) if new else stage
