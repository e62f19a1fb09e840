"""A translated stage: a lens on a fitted Spark stage (read, compute, write back), what training asks of it (which entries train,
in which units, within which domain), and the registry of all of them.
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
from sparkdiff.stages.constraints import Constraint, Positive, Rounded
from sparkdiff.tensors.rows import NEVER, Nulls, Rows, beyond, stored_as

SUPPORT = 5
"""Training rows that must differ from a feature's usual value, or bear a class, for the parameters about it to train."""


@dataclass(frozen=True)
class FeatureStats:
    """What a stage's input looks like over the training rows."""

    mean: Tensor  # (d,)
    std: Tensor  # (d,)
    support: Tensor  # (d,) int64: rows whose value differs from the column's usual one
    leaves: Tensor | None = None  # (L,) int64: rows that each leaf of a stage of trees holds
    entry: Tensor | None = None  # (d,) of sparse rows: root mean square of the entries that aren't 0
    sums: Mapping[str, Tensor] = field(default_factory=dict)  # of the stage's own `training_sums`


@dataclass(frozen=True)
class LabelStats:
    """What the labels of the training rows (of weight > 0) look like."""

    mean: float
    std: float
    low: float
    high: float
    classes: Tensor  # (k,) int64 rows per class, empty where labels are no small whole numbers

    def seen(self, classes: int) -> Tensor:
        """Which of so many classes enough rows bear, (classes,) bool."""
        return F.pad(self.classes, (0, classes - len(self.classes))) >= SUPPORT


def deviation(n: Tensor, total: Tensor, square: Tensor) -> Tensor:
    """The standard deviation of numbers, by how many they are, their sum and their sum of squares; 1 where all are the same."""
    mean = total / n.clamp_min(1)
    found = (square / n.clamp_min(1) - mean * mean).clamp_min(0).sqrt()
    return torch.where(found > 0, found, 1.0)


class Trainable(nn.Module):
    """The defaults train every parameter freely, in steps of 1; a stage with parameters overrides what doesn't fit."""

    feature_axis: ClassVar[dict[str, int]] = {}
    """For each parameter with an entry per input feature: the axis that runs over the features."""
    positive: ClassVar[frozenset[str]] = frozenset()
    """Parameters that must stay > 0 where they count."""
    optional: ClassVar[frozenset[str]] = frozenset()
    """What trains only where the user asks for it: parameters, or buffers, which then become parameters. What Spark keeps in a
    Param of the stage is a buffer, so that the Param stays as it is where all parameters move and nobody asked."""
    float32: ClassVar[bool] = False
    """Whether Spark holds the weights in float32: so are the outputs at the network's border, and parity is to 1e-6 there and
    behind. Parameters are float64 tensors of what float32 can hold.
    """

    def on_request(self) -> dict[str, Tensor]:
        """What trains only where the user asks for it, by name; `optional` may name what this stage hasn't."""
        own = {**dict(self.named_buffers(recurse=False)), **dict(self.named_parameters())}
        return {name: value for name, value in own.items() if name in self.optional}

    def why_frozen(self) -> Mapping[str, str]:
        """By name, why settings that a user may ask for don't train on request, and what to do instead."""
        return {}

    def unfreeze(self, name: str) -> None:
        """Let something train that does so on request only."""
        if name in self._buffers:
            value = self.get_buffer(name)
            delattr(self, name)
            self.register_parameter(name, nn.Parameter(value))
        self.get_parameter(name).requires_grad_()

    def unfrozen_as(self, other: nn.Module) -> Self:
        """This module with the same parameters as another of the stage's class, of which some may have been unfrozen."""
        own = dict(self.named_parameters())
        for name, _ in other.named_parameters():
            if name not in own:
                self.unfreeze(name)
        return self

    def training_sums(self, *columns: Rows, nulls: Nulls | None = None) -> dict[str, Tensor]:
        """Sums over these rows that `units` and `supported` need beside FeatureStats. Takes what `forward` takes.

        The totals over all training rows come back as `FeatureStats.sums`.
        """
        return {}

    def observe(self, x: FeatureStats, values: Mapping[int, Tensor]) -> None:
        """Take note of the stage's input before training.

        Args:
            values: of features that are compared with thresholds that train, the values (m,) that training rows have,
                ascending.
        """

    def entry_mask(self) -> dict[str, Tensor]:
        """For parameters of which some entries never count (std = 0): a mask, True where the entry counts."""
        return {}

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        """Each trainable parameter's natural unit, given the stage's input and the labels; a missing one is 1."""
        return {}

    def supported(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        """Masks of the entries that enough training rows speak for; a missing one is all of them.

        Adam moves the coefficient of a one-hot level with one row at full step although its gradient is nearly 0.
        """
        out = {}
        for name, axis in self.feature_axis.items():
            shape = [1] * getattr(self, name).ndim
            shape[axis] = -1
            out[name] = (x.support >= SUPPORT).view(shape).expand_as(getattr(self, name))
        return out

    def constraints(self) -> dict[str, Constraint]:
        """How parameters that aren't free stay inside their domain while they train; a missing one is free: p0 + unit * u."""
        rounded = {name: Rounded() for name, _ in self.named_parameters()} if self.float32 else {}
        return {**rounded, **dict.fromkeys(self.positive, Positive())}

    def fitted_width(self) -> int:
        """How many features the stage was fitted on; 0 where no parameter tells."""
        return max((attrgetter(name)(self).shape[axis] for name, axis in self.feature_axis.items()), default=0)

    def has_bounds(self) -> bool:
        """Whether `project_` has anything to do."""
        return type(self).project_ is not Trainable.project_

    def project_(self) -> None:
        """Move the parameters back into their domain, in place, after an optimizer step."""

    def check_domain(self, uid: str) -> None:
        """Raise InputError where a parameter has left the domain in which Spark's stage is defined."""
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
UNTRANSLATED: "dict[str, Untranslated]" = {}
SKIPS = "handleInvalid='skip' drops rows, and a torch module cannot drop rows; use 'error' or 'keep'"
NULL = " is null"
"""Ends the name of the boolean column that says in which rows another column is null."""
_Module = TypeVar("_Module", bound="type[StageModule]")
_Out = TypeVar("_Out")


def register(class_name: str) -> Callable[[_Module], _Module]:
    """Make a StageModule the translation of the fitted stages of exactly this class, by its full Python name.

    Raises:
        InputError: the name is not text, or what is registered is not a subclass of StageModule.
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
class Untranslated:
    """The facts about stages without a translation to torch.

    Attributes:
        reason: why they have none; the plan shows it.
        passed_over: whether Spark skips them if the data have no such input, as a model that only predicts needs no label.
        own_attributes: as in StageModule.
        makes_sparse: whether they write sparse vectors, which may be very wide.
    """

    reason: str
    passed_over: bool = False
    own_attributes: bool = False
    makes_sparse: bool = False


def leave_in_spark(class_name: str, reason: str, **facts: bool) -> None:
    """Leave the fitted stages of this class in Spark; `facts` are fields of Untranslated."""
    UNTRANSLATED[class_name] = Untranslated(reason, **facts)


def class_name(stage: Any) -> str:
    """Full Python name of a stage's class."""
    return f"{type(stage).__module__}.{type(stage).__qualname__}"


class Facts:
    """What other modules ask about a stage's columns: the defaults fit most stages; a stage declares what is different."""

    differentiable: ClassVar[bool] = True
    """Whether gradients flow from the outputs to the inputs."""
    takes_nulls: bool = False
    """Whether null and NaN in an input aren't the same to the stage, so that `forward` takes `nulls=` (Nulls)."""
    writes_null: bool = False
    """Whether NaN in an output is null in Spark."""
    reads_categories: ClassVar[bool] = False
    """Whether the scalar inputs are numbers of categories, to which no noise can be added."""
    reads_identifiers: ClassVar[bool] = False
    """Whether the inputs are identifiers, which are no features."""
    storage: ClassVar[str] = ""
    """How Spark stores each vector that this stage writes: "sparse", "compressed" (dense or sparse, whichever takes less
    room), or "" where that depends on the input."""
    tells_zeros: float = NEVER
    """Size of the numbers in the inputs up to which zeros that Spark stores and zeros that it doesn't give the same; less than 0
    where they don't."""
    exact_beyond: float = NEVER
    """Size of the numbers in an output up to which it has the form that is fastest. Beyond, it is stored as in Spark: a stage
    behind `tells_zeros`."""
    expands: ClassVar[bool] = False
    """Whether the outputs are larger than the inputs, so that the cache is smaller with this stage in torch."""
    makes_dense: str = ""
    """What makes the outputs dense where the input is sparse; empty where they stay sparse, or are no vectors."""
    weights_in_metadata: ClassVar[bool] = False
    """Whether the metadata of the outputs tell the weights, and change with them."""
    own_attributes: ClassVar[bool] = False
    """Whether the attributes of the outputs (`ml_attr` metadata) tell nothing of the inputs."""

    def passes_gradient(self) -> bool:
        """Whether outputs that are classes or indices have a gradient after all, by straight-through estimation."""
        return False

    def tells_zeros_beyond(self, place: int) -> float:
        """Size of the numbers in an input up to which a zero gives the same whether Spark stores it or not; `tells_zeros`, but
        less than 0 if parameters aren't finite: products with these are NaN."""
        return self.tells_zeros if all(bool(p.isfinite().all()) for p in self.parameters()) else -1.0  # type: ignore[attr-defined]

    def nominal_features(self) -> Tensor:
        """Features (q,) int64 of the input that are categories, to which no noise can be added."""
        return torch.empty(0, dtype=torch.int64)

    def critical_values(self) -> tuple[tuple[float, ...], ...]:
        """Per scalar input column, values at which the output jumps; parity is checked on rows that hold them."""
        return ()

    def critical_rows(self, row: Tensor) -> Tensor:
        """Rows like `row` (1, d), of a stage that reads a vector, at which its output jumps; (m, d)."""
        return row[:0]


class StageModule(Facts, Trainable):
    """A lens on a fitted stage: a torch module whose parameters are Spark's own values, in float64.

    A subclass names its `weights`, reads them in `from_spark` and computes in `forward`. `forward` takes the input columns
    in the order of `inputs(stage)` and returns the output columns in the order of `outputs(stage)`; a scalar column is
    `(n,)`, a vector column `(n, d)` or SparseRows.

    Null is NaN. A stage to which the two aren't the same says so by `takes_nulls`, and its `forward` then also takes
    `nulls=`, which rows of each input are null. They come from outside, in the optional column `"<name> is null"`, or from a
    stage before that passes null on (`writes_null`); other stages' outputs hold none. Where an input has no such column, its
    NaN is NaN, unless NaN is what the stage refuses and null isn't.

    What a subclass may say besides has defaults: about its columns in `Facts`, about its parameters in `Trainable`. Some stages
    are more: `Affine`, `Prepared`, `FieldReader`, `Predictor`.

    Four laws hold, and `sparkdiff.testing.check_stage` checks them: parity with `stage.transform`; writing back what was
    read changes nothing; reading what was written gives the module's parameters; the caller's stage never changes.
    """

    weights: ClassVar[tuple[str, ...]] = ()
    """Names of the weights in the stage's saved data, in the order of its Scala constructor (after the uid)."""
    weight_params: ClassVar[tuple[str, ...]] = ()
    """Of the weights those that Spark keeps in Params of the stage, not in saved data; such a Param is set where it changed."""
    refusals: ClassVar[tuple[str, ...]] = ()
    """The settings for which `refuses` or `from_fields` leave a stage in Spark, in words, as docs/stages.md lists them; beside
    handleInvalid='skip'."""
    label_cols: ClassVar[tuple[str, ...]] = ()
    """Params that name outputs which are classes or indices: no gradient, and parity counts disagreements."""

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
        """Why this fitted stage must stay in Spark although its class has a torch form; None where it has one."""
        if stage.hasParam("handleInvalid") and stage.getOrDefault("handleInvalid") == "skip":
            return SKIPS
        return None

    @classmethod
    def from_spark(cls, stage: Any) -> "StageModule":
        """The module of a fitted stage."""
        raise NotImplementedError

    def as_stored(self, out: Rows | tuple[Rows, ...]) -> tuple[Any, ...]:
        """The outputs of `forward`, stored as in Spark where that matters (`exact_beyond`)."""
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
        """One weight as numpy array or Python number."""
        value = getattr(self, name)
        if isinstance(value, Tensor):
            array = value.detach().cpu().numpy()
            return array.copy() if array.ndim else float(array)
        return value


def columns_of(stage: Any, params: tuple[str, ...]) -> tuple[str, ...]:
    """The column names that these Params hold, without the unset and the empty ones."""
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
    """What `compute` gives for each column, its nulls and its settings; of a single column no tuple."""
    flags = nulls or [None] * len(columns)
    out = tuple(compute(*part) for part in zip(columns, flags, *settings, strict=True))
    return out[0] if len(out) == 1 else out


def tensor(value: Any) -> Tensor:
    """A Spark vector, matrix, array or number as a float64 tensor that owns its memory."""
    array = value.toArray() if hasattr(value, "toArray") else value
    return torch.tensor(np.asarray(array, dtype=np.float64))


def parameter(value: Tensor, trains: bool = True) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=trains)
