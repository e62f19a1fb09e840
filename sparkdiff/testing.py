"""A check that the torch translation of a stage is correct (it obeys four laws), for the tests of your own StageModule."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from pyspark.sql import DataFrame, functions as F
from torch import Tensor

from sparkdiff import jvm
from sparkdiff.errors import InputError, SparkdiffError, did_you_mean
from sparkdiff.objectives.objective import zero_margin
from sparkdiff.pipeline.column_names import casefolding, col_by_name
from sparkdiff.pipeline.column_tensors import read_plain, write_plain
from sparkdiff.pipeline.parity import SINGLE, TOLERANCE, differences
from sparkdiff.pipeline.translation import field_of
from sparkdiff.pipeline.write_back import write_back_stage
from sparkdiff.stages.base import NULL, REGISTRY, StageModule, class_name, columns_of
from sparkdiff.stages.inputs import FieldReader, PreparedStage, StaysInSparkError
from sparkdiff.stages.predictor import Predictor
from sparkdiff.tensors.rows import Nulls, Rows, dense

ROWS_AT_ONCE = 4096
SEED = 7


class LawBroken(SparkdiffError, AssertionError):
    """The error that the translation of a stage breaks one of the four laws; see `check_stage`.

    Attributes:
        law: "parity", "get-put", "put-get" or "untouched".
        uid: uid of the stage.
        column: the output column, parameter or Param that is wrong.
        value: the wrong value.
    """

    def __init__(self, law: str, stage: Any, column: str, value: Any, what: str):
        super().__init__(f"{stage.uid} ({type(stage).__name__}) breaks {law}: {column!r} {what}")
        self.law, self.uid, self.column, self.value = law, str(stage.uid), column, value


def perturb_parameters(module: StageModule, generator: torch.Generator) -> None:
    """Change every trainable parameter in place, each entry in one of several ways.

    An entry moves to the next double, by a little, by much, to the other side of 0, or to 0. Constrained parameters
    stay inside their domain; finally the module's own `project_` is called.
    """
    with torch.no_grad():
        for name, p in module.named_parameters():
            if not p.requires_grad:
                continue
            noise = torch.rand(p.shape, generator=generator, dtype=p.dtype)
            constraint = module.constraints().get(name)
            if constraint is not None and name not in module.positive:
                moves = [torch.zeros_like(p), 1e-6 * noise, noise, -noise, 3 * noise, -3 * noise]
                which = torch.randint(len(moves), p.shape, generator=generator)
                p.copy_(constraint.value(p, torch.stack(moves).gather(0, which[None]))[0])
                continue
            if name in module.positive:
                moves = [
                    p.nextafter(torch.full_like(p, torch.inf)),
                    p * (1 + 1e-6 * noise),
                    p * (0.1 + noise),
                    p * (10 + noise),
                ]
            else:
                size = p.abs().clamp_min(1)
                moves = [
                    p.nextafter(p + size),
                    p + 1e-6 * size * noise,
                    p - size * noise,
                    10 * p + noise,
                    -p,
                    torch.zeros_like(p),
                ]
            which = torch.randint(len(moves), p.shape, generator=generator)
            new = torch.stack(moves).gather(0, which[None])[0]
            p.copy_(torch.where(new.isfinite(), new, p))
    module.project_()


def check_stage(
    stage: Any,
    df: DataFrame,
    *,
    tolerance: float = TOLERANCE,
    perturb: Callable[[StageModule, torch.Generator], None] = perturb_parameters,
) -> None:
    """Check that the registered translation of a fitted stage satisfies the four laws on the rows of `df`.

    1. parity: `forward` gives the outputs of `stage.transform`, up to `tolerance` times max(1, abs(Spark's value)); NaN
       equals NaN, and infinities must have the same sign. Classes and indices are equal, unless the margin is within the
       tolerance of the boundary.
    2. get-put: writing back unchanged parameters gives the same outputs with the same metadata, weights, uid and
       Params.
    3. put-get: reading the written stage gives the module's parameters bit for bit, and Spark then computes the same
       as the module. Entries without effect (`entry_mask`) keep their values.
    4. untouched: the stage's parameters, uid and Params do not change throughout.

    The check is only as good as its rows: put zeros, NaN, extreme values, dense and sparse vectors into `df`.

        >>> @sparkdiff.register("mine.DoublerModel")
        ... class Doubler(sparkdiff.StageModule): ...
        >>> sparkdiff.testing.check_stage(mine.Doubler(inputCol="x", outputCol="y").fit(df), df)

    Args:
        stage: a fitted stage; its input columns are in `df`, other columns are ignored.
        df: the rows on which Spark and the module are compared.
        tolerance: used in laws 1 and 3; raised to at least 1e-6 for a stage whose weights Spark stores in float32 (its
            module has `float32`).
        perturb: changes the trainable parameters of a module in place, inside their domain; the default tries
            neighbouring values, other signs, zeros and magnitudes.

    Raises:
        LawBroken: the translation breaks a law; the error names the law, the stage, the column and the value.
        InputError: the stage's class has no translation, the stage is refused, or Spark fails on the rows.
    """
    check_stages([stage], df, tolerance=tolerance, perturb=perturb)


def check_stages(
    stages: Sequence[Any],
    df: DataFrame,
    *,
    tolerance: float = TOLERANCE,
    perturb: Callable[[StageModule, torch.Generator], None] = perturb_parameters,
) -> None:
    """Run `check_stage` for many stages on one DataFrame. Needs one Spark job, so is several times faster than separate
    checks.
    """
    generator = torch.Generator().manual_seed(SEED)
    reads = [_CheckedStage(stage, df) for stage in stages]
    trials = [trial for read in reads for trial in _parameters(read, perturb, generator)]
    before = [read.facts(read.stage) for read in reads]
    _outputs(trials, df, tolerance)
    for read, facts in zip(reads, before, strict=True):
        _same_facts("untouched", read.stage, facts, read.facts(read.stage), "after transform")


# Parameters: no Spark job -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Trial:
    """One comparison of outputs: a Spark stage, the module whose outputs it must reproduce, and the original stage."""

    law: str
    stage: Any
    module: StageModule
    original: Any


class _CheckedStage:
    """A stage to check, and its translation into a module, which may depend on the columns of `df`."""

    def __init__(self, stage: Any, df: DataFrame):
        self.stage = stage
        cls = REGISTRY.get(class_name(stage))
        if cls is None:
            raise InputError(
                f"no translation is registered for {class_name(stage)}. {did_you_mean(class_name(stage), REGISTRY)}"
            )
        refused = cls.refuses(stage)
        if refused is not None:
            raise InputError(f"{stage.uid} cannot be translated to torch: {refused}")
        casefold = casefolding()
        there = {casefold(f.name): f for f in df.schema.fields}
        found = [there.get(casefold(c)) for c in _inputs(stage)]
        self.cls, self.fields = cls, [None if f is None else field_of(f) for f in found]

    def module(self, stage: Any) -> StageModule:
        """The module translated from `stage`, which is the stage to check or a stage that was written back from its
        module.
        """
        try:
            if issubclass(self.cls, FieldReader) and self.cls.wants_fields(stage):
                return self.cls.from_fields(stage, self.fields)
            return self.cls.from_spark(stage)
        except StaysInSparkError as e:
            raise InputError(f"{stage.uid} cannot be translated to torch: {e}") from e

    def facts(self, stage: Any, module: StageModule | None = None) -> dict[str, Any]:
        """All properties of a stage that must not change; `module` is the stage's module, if already translated."""
        module, params = module or self.module(stage), jvm.defined_params(stage)
        return {
            "class": class_name(stage),
            "uid": stage.uid,
            "Params set": params["set"],
            "default Params": params["default"],
            "weights": {
                **{name: value.detach().clone() for name, value in module.state_dict().items()},
                **{name: torch.as_tensor(module.weight(name)) for name in module.weights},
            },
        }


def _parameters(
    read: _CheckedStage, perturb: Callable[[StageModule, torch.Generator], None], generator: torch.Generator
) -> list[_Trial]:
    """Check the parts of the laws that need no rows; return the comparisons of outputs, which need rows."""
    stage, cls = read.stage, read.cls
    module = read.module(stage)
    before, java = read.facts(stage, module), jvm.java_params(stage)

    def check_untouched() -> None:
        _same_facts("untouched", stage, before, read.facts(stage), "after writing back")
        if jvm.java_params(stage) != java:
            what = f"are {jvm.java_params(stage)} after writing back; they were {java}"
            raise LawBroken("untouched", stage, "Params of the Java object", jvm.java_params(stage), what)

    if write_back_stage(stage, module) is not stage:
        raise LawBroken("get-put", stage, "stage", None, "is another object although no parameter changed")
    again = module.to_spark(stage)
    check_untouched()
    _same_facts("get-put", stage, before, read.facts(again), "after writing back what was read")
    trials = [_Trial("parity", stage, module, stage), _Trial("get-put", again, module, stage)]

    moved = read.module(stage)
    perturb(moved, generator)
    check_untouched()
    first = read.module(stage).unfrozen_as(moved)
    if any(bool((p != q).any()) for p, q in zip(moved.parameters(), first.parameters(), strict=True)):
        put = write_back_stage(stage, moved)
        check_untouched()
        when = "after writing back other parameters"
        wished = read.module(put).unfrozen_as(moved)
        for (name, p), was, now in zip(wished.named_parameters(), first.parameters(), moved.parameters(), strict=True):
            counting = module.entry_mask().get(name, torch.ones_like(p, dtype=torch.bool))
            kept = ~counting | (now == was)  # zeros of both signs are one parameter
            _same_tensor("put-get", stage, name, torch.where(kept, was, now), p, when)
        rest = _without_weights(cls, read.facts(put, wished))
        _same_facts("put-get", stage, _without_weights(cls, before), rest, when)
        trials.append(_Trial("put-get", put, wished, stage))
    return trials


def _without_weights(cls: type[StageModule], facts: dict[str, Any]) -> dict[str, Any]:
    params = {name: value for name, value in facts["Params set"].items() if name not in cls.weight_params}
    return {**facts, "weights": {}, "Params set": params}


def _same_facts(law: str, stage: Any, was: dict[str, Any], now: dict[str, Any], when: str) -> None:
    for kind, old in was.items():
        new = now[kind]
        if not isinstance(old, dict):
            if old != new:
                raise LawBroken(law, stage, kind, new, f"is {new!r} {when}; it was {old!r}")
            continue
        for name in old.keys() | new.keys():
            if isinstance(old.get(name), Tensor) and isinstance(new.get(name), Tensor):
                _same_tensor(law, stage, name, old[name], new[name], when)
            elif name not in old or name not in new or not _same(old[name], new[name]):
                a, b = old.get(name, "absent"), new.get(name, "absent")
                raise LawBroken(law, stage, name, b, f"({kind}) is {b!r} {when}; it was {a!r}")


def _same(a: Any, b: Any) -> bool:
    """True if the values are equal, or both are NaN."""
    return bool(a == b) or (isinstance(a, float) and isinstance(b, float) and a != a and b != b)


def _same_tensor(law: str, stage: Any, name: str, wished: Tensor, found: Tensor, when: str) -> None:
    if wished.shape != found.shape:
        raise LawBroken(
            law, stage, name, found, f"has shape {tuple(found.shape)} {when}; it should be {tuple(wished.shape)}"
        )
    wrong = (wished != found) & ~(wished.isnan() & found.isnan())
    if bool(wrong.any()):
        at = tuple(wrong.nonzero()[0].tolist())
        a, b = wished[at].item(), found[at].item()
        raise LawBroken(law, stage, name, b, f"entry {list(at)} is {b!r} {when}; it should be {a!r}")


# Outputs: one Spark job -------------------------------------------------------------------------------------------------


def _outputs(trials: Sequence[_Trial], df: DataFrame, tolerance: float) -> None:
    """Run the stages of all trials over the same rows in one Spark job, and compare their outputs with those of the
    modules.
    """
    casefold = casefolding()
    sources = {
        casefold(c): f"in{i}" for i, c in enumerate(dict.fromkeys(c for t in trials for c in _inputs(t.original)))
    }
    tensors = {casefold(c) for t in trials if not isinstance(t.module, PreparedStage) for c in _inputs(t.original)}
    made: dict[int, list[str]] = {}  # by trial: columns that plain stages make and the module reads
    with jvm.as_input_error("Spark failed on the rows"):
        rows = df.select(*(col_by_name(c).alias(name) for c, name in sources.items()))
        schemas, kept_in = [], [name for c, name in sources.items() if c not in tensors]
        carried = {name: F.col(name) for name in sources.values()}  # made once: each takes several calls to Java
        for k, trial in enumerate(trials):
            spelled = {
                casefold(c): c for c in _inputs(trial.original)
            }  # Spark 3.5 finds a column only by its exact spelling
            out = rows.withColumns({c: carried[sources[f]] for f, c in spelled.items()})
            own: dict[str, str] = {}
            if isinstance(trial.module, PreparedStage):
                for before in trial.module.preparation(trial.original):
                    out = before.transform(out)
                own = {f"made{k}_{i}": c for i, c in enumerate(trial.module.prepared_columns(trial.original))}
            made[k] = list(own)
            out = trial.stage.transform(out)
            columns = type(trial.module).outputs(trial.original)
            for c in columns:
                if c not in out.columns:
                    raise LawBroken(trial.law, trial.original, c, None, f"is not among Spark's columns {out.columns}")
            schemas.append([out.schema[c] for c in columns])
            kept = [f"out{k}_{i}" for i in range(len(columns))]
            wished = {**own, **dict(zip(kept, columns, strict=True))}
            rows = out.select(*carried.values(), *(col_by_name(c).alias(name) for name, c in wished.items()))
            carried |= {name: F.col(name) for name in wished}
        for trial, schema in zip(trials, schemas, strict=True):
            _same_schema(trial, schema, schemas[next(k for k, t in enumerate(trials) if t.stage is trial.original)])
        with jvm.temporary("sparkdiff-check-", None) as folder:
            names = [name for name in carried if name not in kept_in]
            write_plain(rows, names, folder / "rows")
            seen = 0
            for batch in read_plain(folder / "rows", ROWS_AT_ONCE, -1.0):
                values = {name: batch[f"v{i}"] for i, name in enumerate(names)}
                nulls = {
                    name: cast(Tensor, batch[f"v{i}{NULL}"]) for i, name in enumerate(names) if f"v{i}{NULL}" in batch
                }
                for k, trial in enumerate(trials):
                    read = made[k] or [sources[casefold(c)] for c in _inputs(trial.original)]
                    written = [f"out{k}_{i}" for i in range(len(type(trial.module).outputs(trial.original)))]
                    given = [values[name] for name in read], [nulls.get(name) for name in read]
                    found = [values[name] for name in written], [nulls.get(name) for name in written]
                    _compare(trial, given, found, tolerance, seen)
                seen += len(values[names[0]])
    if not seen:
        raise InputError("there are no rows to compare: check how the data are read and filtered")


def _inputs(stage: Any) -> tuple[str, ...]:
    return tuple(jvm.unquoted(c) for c in REGISTRY[class_name(stage)].inputs(stage))


def _same_schema(trial: _Trial, schema: Sequence[Any], original: Sequence[Any]) -> None:
    told = trial.law == "put-get" and trial.module.weights_in_metadata
    for now, was in zip(schema, original, strict=True):
        if now.dataType != was.dataType or (now.metadata != was.metadata and not told):
            raise LawBroken(
                trial.law,
                trial.original,
                was.name,
                now.metadata,
                f"is {now.dataType} with metadata {now.metadata} after writing back; it was {was.dataType} with {was.metadata}",
            )


@torch.no_grad()
def _compare(
    trial: _Trial,
    given: tuple[Sequence[Rows], Nulls],
    found: tuple[Sequence[Rows], Nulls],
    tolerance: float,
    first: int,
) -> None:
    """Raise LawBroken if the module's outputs differ from Spark's on a batch that begins at row `first`."""
    module, stage, inputs = trial.module, trial.original, given[0]
    try:
        out = module(*inputs, **({"nulls": given[1]} if module.takes_nulls else {}))
    except InputError as e:
        raise LawBroken(trial.law, stage, "forward", None, f"refuses rows that Spark accepts: {e}") from e
    out = out if isinstance(out, tuple) else (out,)
    names = type(module).outputs(stage)
    if len(out) != len(names):
        raise LawBroken(
            trial.law, stage, "forward", len(out), f"returns {len(out)} columns; Spark writes {', '.join(names)}"
        )
    if isinstance(module, Predictor) and len(of_margin := module.columns(zero_margin(module, 2))) != len(names):
        what = f"returns {len(of_margin)} columns; Spark writes {', '.join(names)}"
        raise LawBroken(trial.law, stage, "columns", len(of_margin), what)
    labels = type(module).labels(stage)
    tolerance = max(tolerance, SINGLE) if module.float32 else tolerance
    for name, column, null, returned in zip(names, *found, out, strict=True):
        theirs, ours = dense(column), dense(returned)
        if ours.shape != theirs.shape:
            raise LawBroken(
                trial.law, stage, name, ours, f"has shape {tuple(ours.shape)} where Spark's is {tuple(theirs.shape)}"
            )
        if name in labels:
            wrong = (ours != theirs) & ~(ours.isnan() & theirs.isnan())
            shown = name in columns_of(stage, ("predictionCol",))
            near = module.boundary(module.margin(*inputs)) if isinstance(module, Predictor) and shown else None
            wrong = wrong if near is None else wrong & ~(near <= tolerance)
        else:
            wrong = ~(differences(ours, theirs)[1] <= tolerance)
        if module.writes_null and ours.ndim == 1:  # later stages treat its NaN as null
            wrong = wrong | (ours.isnan() & ~(torch.zeros_like(wrong) if null is None else null))
        if bool(wrong.any()):
            at = wrong.nonzero()[0].tolist()
            a, b = theirs[tuple(at)].item(), ours[tuple(at)].item()
            entry = f" entry {at[1]}" if len(at) > 1 else ""
            row = [dense(x)[at[0]].tolist() for x in inputs]
            what = f"row {first + at[0]}{entry} is {b!r}, but Spark gives {a!r} (inputs {row})"
            raise LawBroken(trial.law, stage, name, b, what)
