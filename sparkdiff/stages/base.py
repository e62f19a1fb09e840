"""A translated stage: a lens on a fitted Spark stage (read, compute, write back), its facts for training (which entries
train, in which units, within which domain), and the registry of all translations.

The unit of a parameter is its typical scale: a step of 1 in training changes the parameter (with a constraint, its move)
by one unit. The margin of a predictor is what its loss is computed from, such as the linear predictor before the link, or
scores of the classes.

To add a stage:

1. Copy the most similar class of this room. Register the new one under Spark's full class name, and remove that name from
   `referenced_stages.py` if it is there.
2. Name the weights as the stage's saved data does, in the order of the Scala constructor. Write `forward`; write
   `from_spark` and `to_spark` only if the methods of the base class do not fit. Read in `jvm/` what pyspark does not show,
   as `jvm/mllib.py` does.
3. Do not approximate a setting that cannot be computed exactly: list it in `refusals`. The stage then stays in Spark and
   gives the reason.
4. Training may run `forward` on a GPU and in float32. Its tensors therefore have the device and dtype of its rows
   (`x.new_zeros(...)`), and it does not wait for the device: a check of values asks `known_any` (`tensors/rows.py`), and on a
   GPU a mask takes the place of a selection.
5. If the stage is affine in its inputs, inherit from `Affine` (`affine.py`), so that all candidates share its computation. Its
   derivative is written by hand; `tests/unit/training/test_candidates.py` compares it with autograd.
6. Add the stage to the laws of its kind in `tests/laws/`, with a fault of your own in the `test_*_planted.py` beside them; to the
   grid of Params in `tests/parity/test_roundtrip.py`, with constant columns, NaN, null, sparse vectors and an empty partition;
   and to `tests/unit/stages/test_on_devices.py`. `tests/support/other_devices.py` compares it with itself on a fake GPU.
7. Run `python tools/stage_coverage.py`, which writes docs/stages.md, and correct the number of stages in README.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from sparkdiff import jvm
from sparkdiff.errors import InputError, check_type, kind_of
from sparkdiff.stages.constraints import Constraint, Float32Values, PositiveValues
from sparkdiff.tensors.rows import NEVER, Nulls, Rows, beyond, stored_as

SUPPORT = 5
"""Smallest number of training rows with a value other than a feature's usual one, or with a class, leaf or category, for
which the parameters about it train.
"""


@dataclass(frozen=True)
class FeatureStats:
    """Statistics of a stage's input over the training rows."""

    mean: Tensor  # (d,)
    std: Tensor  # (d,)
    support: Tensor  # (d,) int64: rows whose value differs from the column's usual one
    leaves: Tensor | None = None  # (L,) int64: rows in each leaf of a stage of trees
    entry: Tensor | None = None  # (d,) of sparse rows: root mean square of the entries that aren't 0
    sums: Mapping[str, Tensor] = field(default_factory=dict)  # results of the stage's own `training_sums`


@dataclass(frozen=True)
class LabelStats:
    """Statistics of the labels of the training rows (of weight > 0)."""

    mean: float
    std: float
    low: float
    high: float
    classes: Tensor  # (k,) int64 rows per class, empty if labels are not small whole numbers

    def supported_classes(self, classes: int) -> Tensor:
        """Mask of the classes, out of `classes`, that at least SUPPORT rows have, (classes,) bool."""
        return F.pad(self.classes, (0, classes - len(self.classes))) >= SUPPORT


def deviation(n: Tensor, total: Tensor, square: Tensor) -> Tensor:
    """Standard deviation of numbers, from their count, sum and sum of squares; 1 where all are the same."""
    mean = total / n.clamp_min(1)
    found = (square / n.clamp_min(1) - mean * mean).clamp_min(0).sqrt()
    return torch.where(found > 0, found, 1.0)


class Trainable(nn.Module):
    """Facts about the parameters of a stage, for training. By default each parameter trains without constraint and its
    unit is 1; a stage overrides the methods for which this is wrong.
    """

    feature_axis: ClassVar[dict[str, int]] = {}
    """The axis that runs over the features, for each parameter with an entry per input feature."""
    positive: ClassVar[frozenset[str]] = frozenset()
    """Parameters whose entries must stay > 0, except entries that never count (`entry_mask`)."""
    domains: ClassVar[Mapping[str, Constraint]] = {}
    """Constraints of parameters by name, except those that depend on settings of the stage (`constraints`)."""
    optional: ClassVar[frozenset[str]] = frozenset()
    """Names of the settings that are frozen by default and train only on the user's request. A setting is a parameter,
    or a buffer, which becomes a parameter on request. A value that Spark keeps in a Param of the stage is a buffer, so
    that the Param does not change without a request.
    """
    float32: ClassVar[bool] = False
    """Whether Spark holds the weights in float32. If so, the network returns this stage's outputs in float32, and
    parity is checked to 1e-6 for this stage and all stages behind it. The parameters are float64 tensors with values
    that float32 can hold.
    """

    def on_request(self) -> dict[str, Tensor]:
        """Parameters and buffers of this stage that train only on the user's request, by name: those in `optional`."""
        own = {**dict(self.named_buffers(recurse=False)), **dict(self.named_parameters())}
        return {name: value for name, value in own.items() if name in self.optional}

    def why_frozen(self) -> Mapping[str, str]:
        """Reasons why this stage cannot train a setting that a user may ask for, with the remedy, by name of the
        setting.
        """
        return {}

    def unfreeze(self, name: str) -> None:
        """Make a setting trainable that is frozen by default (`optional`)."""
        if name in self._buffers:
            value = self.get_buffer(name)
            delattr(self, name)
            self.register_parameter(name, nn.Parameter(value))
        self.get_parameter(name).requires_grad_()

    def unfrozen_as(self, other: nn.Module) -> Self:
        """Unfreeze the buffers that have become parameters in another module of the same class, so that both modules
        have the same parameters. Returns this module.
        """
        own = dict(self.named_parameters())
        for name, _ in other.named_parameters():
            if name not in own:
                self.unfreeze(name)
        return self

    def training_sums(self, *columns: Rows, nulls: Nulls | None = None) -> dict[str, Tensor]:
        """Sums over these rows that `units` and `supported` need in addition to FeatureStats. Takes the arguments of
        `forward`.

        The totals over all training rows are passed back as `FeatureStats.sums`.
        """
        return {}

    def observe(self, x: FeatureStats, values: Mapping[int, Tensor]) -> None:
        """Store facts about the stage's input that training needs; called before training.

        Args:
            x: statistics of the input over the training rows.
            values: the values (m,) of a feature in the training rows, ascending, by index of the feature; only for
                features that are compared with a threshold that trains.
        """

    def entry_mask(self) -> dict[str, Tensor]:
        """Masks by parameter, True where an entry affects the output; only for parameters with entries that never do,
        such as a scaler's entries for features with std = 0.
        """
        return {}

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        """Unit (typical scale) of each trainable parameter by name, given statistics of the stage's input and of the
        labels; 1 for a name that is missing.
        """
        return {}

    def supported(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        """Masks of the entries with enough training rows (SUPPORT) to train; a missing mask means all.

        Adam moves the coefficient of a one-hot level with one row at full step although its gradient is nearly 0.
        """
        out = {}
        for name, axis in self.feature_axis.items():
            shape = [1] * getattr(self, name).ndim
            shape[axis] = -1
            out[name] = (x.support >= SUPPORT).view(shape).expand_as(getattr(self, name))
        return out

    def constraints(self) -> dict[str, Constraint]:
        """Constraints that keep parameters inside their domain while they train, by name. A parameter without a
        constraint is p0 + unit * u, with its fitted value p0 and an unbounded u.
        """
        rounded = {name: Float32Values() for name, _ in self.named_parameters()} if self.float32 else {}
        return {**rounded, **dict.fromkeys(self.positive, PositiveValues()), **self.domains}

    def fitted_width(self) -> int:
        """Number of features that the stage was fitted on; 0 if no parameter shows it."""
        return max((attrgetter(name)(self).shape[axis] for name, axis in self.feature_axis.items()), default=0)

    def has_bounds(self) -> bool:
        """True if `project_` has anything to do."""
        return type(self).project_ is not Trainable.project_

    def project_(self) -> None:
        """Move the parameters back into their domain, in place, after an optimizer step."""

    def check_domain(self, uid: str) -> None:
        """Raise InputError if a parameter has left the domain in which Spark's stage is defined."""
        for name, p in self.named_parameters():
            if self.float32 and bool((p.isfinite() & ~p.float().isfinite()).any()):
                value = p[~p.float().isfinite()][0].item()
                raise InputError(
                    f"{uid}: {name} holds {value!r}, which is too large for Spark's float; clamp it before writing back"
                )
            counting = self.entry_mask().get(name, torch.ones_like(p, dtype=torch.bool))
            if name in self.positive and bool(((p <= 0) & counting).any()):
                worst = p[(p <= 0) & counting][0].item()
                raise InputError(
                    f"{uid}: {name} must stay > 0, but an entry is {worst!r}; clamp it before writing back"
                )


REGISTRY: "dict[str, type[StageModule]]" = {}
UNTRANSLATED: "dict[str, UntranslatedFacts]" = {}
SKIPS = "handleInvalid='skip' drops rows, and a torch module cannot drop rows; use 'error' or 'keep'"
NULL = " is null"
"""Suffix of the name of a boolean column that says in which rows another column is null."""
_Module = TypeVar("_Module", bound="type[StageModule]")
_Out = TypeVar("_Out")


def register(class_name: str) -> Callable[[_Module], _Module]:
    """Register a StageModule as the translation of fitted stages of exactly one class, given by its full Python name.

    Raises:
        InputError: the name is not text, or the decorated object is not a subclass of StageModule.

    Examples:
        >>> import sparkdiff
        >>> @sparkdiff.register("shop.Clip")  # the class of the fitted stage; `plan` and all else then know it
        ... class ClipModule(sparkdiff.StageModule):
        ...     pass  # see the example of `StageModule`
    """
    check_type("the class name of register()", class_name, str, 'a full Python name such as "shop.Saturation"')

    def decorate(module: _Module) -> _Module:
        if not (isinstance(module, type) and issubclass(module, StageModule)):
            raise InputError(
                f"register({class_name!r}) takes a subclass of sparkdiff.StageModule, got {kind_of(module)}: write "
                f'@register("{class_name}") above its class'
            )
        REGISTRY[class_name] = module
        return module

    return decorate


@dataclass(frozen=True)
class UntranslatedFacts:
    """The facts about stages without a translation to torch.

    Attributes:
        reason: the reason why they have none; the plan shows it.
        passed_over: whether Spark skips such a stage if the data lack its input, such as a label that prediction does
            not need.
        own_attributes: as in `ColumnFacts`.
        makes_sparse: whether they write sparse vectors, which may be very wide.
    """

    reason: str
    passed_over: bool = False
    own_attributes: bool = False
    makes_sparse: bool = False


def leave_in_spark(class_name: str, reason: str, **facts: bool) -> None:
    """Register that fitted stages of this class stay in Spark, and why; `facts` are fields of UntranslatedFacts."""
    UNTRANSLATED[class_name] = UntranslatedFacts(reason, **facts)


def class_name(stage: Any) -> str:
    """Full Python name of a stage's class."""
    return f"{type(stage).__module__}.{type(stage).__qualname__}"


class ColumnFacts:
    """Facts about a stage's columns, for other modules. The defaults fit most stages; a stage overrides the others."""

    differentiable: ClassVar[bool] = True
    """Whether gradients flow from the outputs to the inputs."""
    takes_nulls: bool = False
    """Whether the stage treats null in an input differently from NaN; if so, `forward` takes `nulls=` (Nulls)."""
    writes_null: bool = False
    """Whether NaN in an output is null in Spark."""
    reads_categories: ClassVar[bool] = False
    """Whether the scalar inputs are category numbers, to which no noise can be added."""
    reads_identifiers: ClassVar[bool] = False
    """Whether the inputs are identifiers, not features."""
    storage: ClassVar[str] = ""
    """Form in which Spark stores each vector that this stage writes: "sparse", "compressed" (dense or sparse, whichever
    takes less space), or "" if the form depends on the input.
    """
    tells_zeros: float = NEVER
    """Bound on the magnitude of the inputs: if no input exceeds it, stored and unstored zeros give the same result.
    Less than 0 if the results may differ for inputs of any magnitude.
    """
    exact_beyond: float = NEVER
    """Bound on the magnitude of an output: if no entry exceeds it, the output is dense or sparse, whichever is faster.
    Otherwise it is stored as in Spark, because a later stage distinguishes stored from unstored zeros (`tells_zeros`).
    """
    expands: ClassVar[bool] = False
    """Whether the outputs are larger than the inputs, so that the cache is smaller if this stage runs in torch."""
    makes_dense: str = ""
    """The reason why outputs are dense although the input is sparse; empty if they stay sparse, or are no vectors."""
    weights_in_metadata: ClassVar[bool] = False
    """Whether the metadata of the outputs contain the weights, and change with them."""
    own_attributes: ClassVar[bool] = False
    """Whether the attributes of the outputs (`ml_attr` metadata) contain nothing about the inputs."""

    def passes_gradient(self) -> bool:
        """True if the outputs have a gradient, by straight-through estimation, although they are classes or indices."""
        return False

    def tells_zeros_beyond(self, place: int) -> float:
        """The value of `tells_zeros` for the input number `place`: less than 0 if a parameter is not finite, because
        then 0 times that parameter is NaN.
        """
        return self.tells_zeros if all(bool(p.isfinite().all()) for p in self.parameters()) else -1.0  # type: ignore[attr-defined]

    def nominal_features(self) -> Tensor:
        """Indices (q,) int64 of the input features that are categories, to which no noise can be added."""
        return torch.empty(0, dtype=torch.int64)

    def critical_values(self) -> tuple[tuple[float, ...], ...]:
        """Values at which the output jumps, for each scalar input column; parity with Spark is checked on rows with
        these values.
        """
        return ()

    def critical_rows(self, row: Tensor) -> Tensor:
        """Variants of `row` (1, d) at which the output jumps, for a stage that reads a vector; (m, d)."""
        return row[:0]


class StageModule(ColumnFacts, Trainable):
    """A lens on a fitted stage: a torch module whose parameters are Spark's own values, in float64.

    A subclass names its `weights`, which `from_spark` reads, and computes in `forward`. `forward` takes the input
    columns in the order of `inputs(stage)` and returns the output columns in the order of `outputs(stage)`; a scalar
    column is `(n,)`, a vector column `(n, d)` or SparseRows.

    Null is NaN. A stage that treats the two differently sets `takes_nulls`; its `forward` then also takes `nulls=`,
    which says which rows of each input are null. These come from outside, in the optional column `"<name> is null"`,
    or from an earlier stage that passes null on (`writes_null`); other stages' outputs hold none. If an input has no
    such column, its NaN is NaN, unless the stage refuses NaN and accepts null.

    Everything else has defaults that a subclass may override: about its columns in `ColumnFacts`, about its parameters in
    `Trainable`. Some stages have a more special base class: `Affine`, `PreparedStage`, `FieldReader`, `Predictor`.

    Four laws hold, and `sparkdiff.testing.check_stage` checks them: parity with `stage.transform`; writing back what
    was read changes nothing; reading what was written gives the module's parameters; the caller's stage never changes.

    Examples:
        >>> import sparkdiff, torch
        >>> class ClipModule(sparkdiff.StageModule):
        ...     @classmethod
        ...     def from_spark(cls, stage):
        ...         return cls()  # the stage has no parameters
        ...     def forward(self, x):
        ...         return x.clamp(min=0.0)
        >>> ClipModule()(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """

    weights: ClassVar[tuple[str, ...]] = ()
    """Names of the weights in the stage's saved data, in the order of its Scala constructor (after the uid)."""
    weight_params: ClassVar[tuple[str, ...]] = ()
    """Weights that Spark keeps in Params of the stage, not in its saved data. `to_spark` sets a Param only if its value
    has changed.
    """
    refusals: ClassVar[tuple[str, ...]] = ()
    """Descriptions of the settings for which `refuses` or `from_fields` leave a stage in Spark, listed in
    docs/stages.md; handleInvalid='skip' is not repeated here.
    """
    label_cols: ClassVar[tuple[str, ...]] = ()
    """Params that name outputs with classes or indices: these have no gradient, and the check of parity counts rows
    that differ instead of measuring errors.
    """

    @classmethod
    def inputs(cls, stage: Any) -> tuple[str, ...]:
        """Input columns of the fitted stage."""
        return columns_of(stage, ("inputCol", "inputCols", "featuresCol"))

    @classmethod
    def outputs(cls, stage: Any) -> tuple[str, ...]:
        """Output columns of the fitted stage."""
        return columns_of(stage, ("outputCol", "outputCols", "predictionCol"))

    @classmethod
    def labels(cls, stage: Any) -> tuple[str, ...]:
        """Output columns that are classes or indices."""
        return columns_of(stage, cls.label_cols)

    @classmethod
    def refuses(cls, stage: Any) -> str | None:
        """Reason why this fitted stage must stay in Spark although its class has a torch form; None if there is none."""
        if stage.hasParam("handleInvalid") and stage.getOrDefault("handleInvalid") == "skip":
            return SKIPS
        return None

    @classmethod
    def from_spark(cls, stage: Any) -> "StageModule":
        """A new module with the weights of a fitted stage. By default the constructor takes the weights alone, which are
        attributes of the stage.
        """
        return cls(*(tensor(getattr(stage, name)) for name in cls.weights))

    def as_stored(self, out: Rows | tuple[Rows, ...]) -> tuple[Any, ...]:
        """Outputs of `forward`, stored as in Spark where that matters (`exact_beyond`)."""
        columns = out if isinstance(out, tuple) else (out,)
        return tuple(
            stored_as(x, self.storage) if self.storage and beyond(x, self.exact_beyond) else x for x in columns
        )

    def to_spark(self, stage: Any) -> Any:
        """A new fitted stage like `stage` (class, uid, Params set and default) with this module's parameters."""
        if self.weight_params:
            return jvm.with_params(stage, {name: self.weight(name) for name in self.weight_params})
        return jvm.rebuild(stage, {name: self.weight(name) for name in self.weights}) if self.weights else stage.copy()

    def weight(self, name: str) -> Any:
        """One weight as a numpy array or Python number."""
        value = getattr(self, name)
        if isinstance(value, Tensor):
            array = value.detach().cpu().numpy()
            return array.copy() if array.ndim else float(array)
        return value


def columns_of(stage: Any, params: tuple[str, ...]) -> tuple[str, ...]:
    """Column names that these Params hold, without unset and empty ones."""
    out: list[str] = []
    for name in params:
        if stage.hasParam(name) and stage.isDefined(name):
            value = stage.getOrDefault(name)
            # A stage with outputCols set still has a default outputCol, `<uid>__output`, which it doesn't write.
            if (
                name in ("inputCol", "outputCol")
                and not stage.isSet(name)
                and stage.hasParam(name + "s")
                and stage.isSet(name + "s")
            ):
                continue
            if name == "outputCol" and not stage.isSet(name):
                value = jvm.default_output(stage)
            out += [value] if isinstance(value, str) else list(value or ())
    return tuple(c for c in out if c)


def each_column(
    compute: Callable[..., _Out], columns: Sequence[Rows], nulls: Nulls | None, *settings: Iterable[Any]
) -> _Out | tuple[_Out, ...]:
    """Results of `compute(column, nulls of the column, *settings of the column)` for each column, as a tuple; for a
    single column the result itself.
    """
    flags = nulls or [None] * len(columns)
    out = tuple(compute(*part) for part in zip(columns, flags, *settings, strict=True))
    return out[0] if len(out) == 1 else out


def tensor(value: Any) -> Tensor:
    """A Spark vector, matrix, array or number as a float64 tensor that owns its memory."""
    array = value.toArray() if hasattr(value, "toArray") else value
    return torch.tensor(np.asarray(array, dtype=np.float64))


def parameter(value: Tensor, trains: bool = True) -> nn.Parameter:
    """A torch parameter that shares the memory of a tensor.

    Args:
        value: the tensor with the fitted values.
        trains: False for a parameter that does not train, and so has no gradient.
    """
    return nn.Parameter(value, requires_grad=trains)
