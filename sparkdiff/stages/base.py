"""What a translated stage is: a lens on a fitted Spark stage (read, compute, write back), and the registry of all of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from sparkdiff import jvm
from sparkdiff.errors import InputError
from sparkdiff.rows import Nulls, Rows
from sparkdiff.stages.affine import AffineForm, NotAffineError, NotSparseError
from sparkdiff.stages.constraints import Constraint, Positive, Rounded
from sparkdiff.stages.fields import Field
from sparkdiff.stages.trainable import SUPPORT, FeatureStats, LabelStats, Parameters

# MKL settles at the first call which code its functions run. Where two of its threads are the first, on a busy machine, one of
# them has exponentials of eight digits in one of thirty processes; so few numbers are one thread's.
torch.exp(torch.zeros(8, dtype=torch.float64))
REGISTRY: dict[str, type[StageModule]] = {}
UNTRANSLATED: dict[str, Untranslated] = {}
SKIPS = "handleInvalid='skip' drops rows, and a torch module cannot drop rows; use 'error' or 'keep'"
NULL = " is null"
"""Ends the name of the boolean column that says in which rows another column is null."""
_Module = TypeVar("_Module", bound="type[StageModule]")


def register(class_name: str) -> Callable[[_Module], _Module]:
    """Make a StageModule the translation of the fitted stages of exactly this class, by its full Python name."""

    def decorate(module: _Module) -> _Module:
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


class StageModule(nn.Module):
    """A fitted stage as a torch module whose parameters are Spark's own values, in float64.

    A subclass names its `weights`, reads them in `from_spark` and computes in `forward`. `forward` takes the input columns
    in the order of `inputs(stage)` and returns the output columns in the order of `outputs(stage)`; a scalar column is
    `(n,)`, a vector column `(n, d)` or SparseRows.

    Null is NaN. A stage to which the two aren't the same says so by `takes_nulls`, and its `forward` then also takes
    `nulls=`, which rows of each input are null. They come from outside, in the optional column `"<name> is null"`, or from a
    stage before that passes null on (`writes_null`); other stages' outputs hold none. Where an input has no such column, its
    NaN is NaN, unless NaN is what the stage refuses and null isn't.

    Four laws hold, and `sparkdiff.testing.check_stage` checks them: parity with `stage.transform`; writing back what was
    read changes nothing; reading what was written gives the module's parameters; the caller's stage never changes.
    """

    weights: ClassVar[tuple[str, ...]] = ()
    """Names of the weights in the stage's saved data, in the order of its Scala constructor (after the uid)."""
    weight_params: ClassVar[tuple[str, ...]] = ()
    """Of the weights those that Spark keeps in Params of the stage, not in saved data; such a Param is set where it changed."""
    feature_axis: ClassVar[dict[str, int]] = {}
    """For each parameter with an entry per input feature: the axis that runs over the features."""
    positive: ClassVar[frozenset[str]] = frozenset()
    """Parameters that must stay > 0 where they count."""
    weights_in_metadata: ClassVar[bool] = False
    """Whether the metadata of the outputs tell the weights, and change with them."""
    expands: ClassVar[bool] = False
    """Whether the outputs are larger than the inputs, so that the cache is smaller with this stage in torch."""
    refusals: ClassVar[tuple[str, ...]] = ()
    """The settings for which `refuses` or `from_fields` leave a stage in Spark, in words, as docs/stages.md lists them; beside
    handleInvalid='skip'."""
    makes_dense: str = ""
    """What makes the outputs dense where the input is sparse; empty where they stay sparse, or are no vectors."""
    differentiable: ClassVar[bool] = True
    """Whether gradients flow from the outputs to the inputs."""
    label_cols: ClassVar[tuple[str, ...]] = ()
    """Params that name outputs which are classes or indices: no gradient, and parity counts disagreements."""
    takes_nulls: bool = False
    """Whether null and NaN in an input aren't the same to the stage, so that `forward` takes `nulls=` (Nulls)."""
    writes_null: bool = False
    """Whether NaN in an output is null in Spark."""
    reads_categories: ClassVar[bool] = False
    """Whether the scalar inputs are numbers of categories, to which no noise can be added."""
    own_attributes: ClassVar[bool] = False
    """Whether the attributes of the outputs (`ml_attr` metadata) tell nothing of the inputs."""
    columnwise: ClassVar[bool] = False
    """Whether each column of the output depends on the same column of the one input alone, and is 0 where that is."""
    optional: ClassVar[frozenset[str]] = frozenset()
    """What trains only where the user asks for it: parameters, or buffers, which then become parameters. What Spark keeps in a
    Param of the stage is a buffer, so that the Param stays as it is where all parameters move and nobody asked."""
    storage: ClassVar[str] = ""
    """How Spark stores each vector that this stage writes: "sparse", "compressed" (dense or sparse, whichever takes less
    room), or "" where that depends on the input."""
    float32: ClassVar[bool] = False
    """Whether Spark holds the weights in float32: so are the outputs at the network's border, and parity is to 1e-6 there and
    behind. Parameters are float64 tensors of what float32 can hold.
    """
    preparation_note: ClassVar[str] = ""
    """What Spark does first, by plain stages of `preparation`, for a stage whose inputs can't enter torch; the plan says so."""
    reads_identifiers: ClassVar[bool] = False
    """Whether the inputs are identifiers, which are no features."""
    routes: ClassVar[bool] = False
    """Whether the stage sends rows to leaves (`route`), and computes its outputs from these alone (`routed_outputs`)."""

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
    def prepared_columns(cls, stage: Any) -> tuple[str, ...]:
        """The columns that `preparation` makes and `forward` takes in place of `inputs`; none where it takes the inputs."""
        return ()

    @classmethod
    def preparation(cls, stage: Any) -> list[Any]:
        """Plain stages that Spark runs in front of the fitted one."""
        return []

    def original_inputs(self, *columns: Rows) -> tuple[Any, ...]:
        """Inputs of Spark's stage, as Arrow arrays, from which `preparation` would make these columns."""
        raise NotImplementedError

    @classmethod
    def from_spark(cls, stage: Any) -> StageModule:
        """The module of a fitted stage."""
        raise NotImplementedError

    undecided: ClassVar[str] = "hold categories"
    """What of its input columns the stage can't know before data are seen, where it wants their fields."""

    @classmethod
    def wants_fields(cls, stage: Any) -> bool:
        """Whether what the input columns are (their `ml_attr` metadata) decides what the stage computes."""
        return False

    @classmethod
    def from_fields(cls, stage: Any, fields: Sequence[Field | None]) -> StageModule:
        """The module of a stage that wants to know its input columns; None is a column that nothing is known of yet.

        Raises:
            StaysInSparkError: these columns keep it in Spark.
        """
        return cls.from_spark(stage)

    def trees_and_leaves(self) -> tuple[int, int]:
        """Numbers of trees and of leaves over all trees, of a stage that routes."""
        return 0, 0

    def route(self, *columns: Rows) -> Tensor:
        """The number of each row's leaf in each tree, (n, T) int32, counted over all trees."""
        raise NotImplementedError

    def routed_outputs(self, leaves: Tensor) -> Any:
        """The outputs of rows that fall into these leaves."""
        raise NotImplementedError

    @property
    def routes_fixed(self) -> bool:
        """Whether no parameter that trains changes where a row goes."""
        return False

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
            self.register_parameter(name, parameter(value))
        self.get_parameter(name).requires_grad_()

    def unfrozen_as(self, other: StageModule) -> StageModule:
        """This module with the same parameters as another of the stage's class, of which some may have been unfrozen."""
        own = dict(self.named_parameters())
        for name, _ in other.named_parameters():
            if name not in own:
                self.unfreeze(name)
        return self

    def passes_gradient(self) -> bool:
        """Whether outputs that are classes or indices have a gradient after all, by straight-through estimation."""
        return False

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

    def settle_(self) -> None:
        """Move parameters, in place, to where they would be written back."""

    def explain_nan(self, *columns: Rows) -> str | None:
        """Why the outputs of these rows are NaN although no input is; None where the stage knows no reason."""
        return None

    def compared_features(self) -> Tensor:
        """Features (q,) int64 of the input that are compared with thresholds."""
        return torch.empty(0, dtype=torch.int64)

    def nominal_features(self) -> Tensor:
        """Features (q,) int64 of the input that are categories, to which no noise can be added."""
        return torch.empty(0, dtype=torch.int64)

    def entry_mask(self) -> dict[str, Tensor]:
        """For parameters of which some entries never count (std = 0): a mask, True where the entry counts."""
        return {}

    def critical_rows(self, row: Tensor) -> Tensor:
        """Rows like `row` (1, d), of a stage that reads a vector, at which its output jumps; (m, d)."""
        return row[:0]

    def critical_values(self) -> tuple[tuple[float, ...], ...]:
        """Per scalar input column, values at which the output jumps; parity is checked on rows that hold them."""
        return ()

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

    def affine_form(self, p: Parameters, slope: Tensor, widths: Sequence[int]) -> AffineForm:
        """Affine functions of this stage's output as functions of its inputs; how many candidates are trained at once.

        Args:
            p: this stage's parameters, those that train with a leading dimension of K candidates.
            slope: (K, d_out, m) slopes of m functions; K may be missing where no candidate differs. A predictor makes the
                functions (its margins) and gets an empty tensor.
            widths: of the inputs.

        Raises:
            NotAffineError: the stage isn't affine; its candidates are then evaluated one by one.
        """
        raise NotAffineError(type(self).__name__)

    def narrowed(self, columns: Sequence[Tensor | None], widths: Sequence[int]) -> tuple[StageModule, Tensor | None]:
        """This stage, for `affine_form`, on some columns of its inputs, and the columns left of its output; None means all.

        It lets a batch of wide sparse rows train the parameters of the columns alone that it has entries in: those of
        `feature_axis` are cut down likewise.

        Args:
            columns: per input (c,), ascending.
            widths: of the inputs.

        Raises:
            NotSparseError: columns of 0 count too.
        """
        if not self.columnwise:
            raise NotSparseError(type(self).__name__)
        return self, columns[0]

    def with_buffers(self, **buffers: Tensor) -> StageModule:
        """This stage with other buffers of these names; everything else is shared."""
        other = copy.copy(self)
        other._buffers = {**self._buffers, **buffers}
        return other

    def constraints(self) -> dict[str, Constraint]:
        """How parameters that aren't free stay inside their domain while they train; a missing one is free: p0 + unit * u."""
        rounded = {name: Rounded() for name, _ in self.named_parameters()} if self.float32 else {}
        return {**rounded, **dict.fromkeys(self.positive, Positive())}

    def fitted_width(self) -> int:
        """How many features the stage was fitted on; 0 where no parameter tells."""
        return max((attrgetter(name)(self).shape[axis] for name, axis in self.feature_axis.items()), default=0)

    def has_bounds(self) -> bool:
        """Whether `project_` has anything to do."""
        return type(self).project_ is not StageModule.project_

    def settles(self) -> bool:
        """Whether `settle_` has anything to do."""
        return False

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


def tensor(value: Any) -> Tensor:
    """A Spark vector, matrix, array or number as a float64 tensor that owns its memory."""
    array = value.toArray() if hasattr(value, "toArray") else value
    return torch.tensor(np.asarray(array, dtype=np.float64))


def parameter(value: Tensor, trains: bool = True) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=trains)
