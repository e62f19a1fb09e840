"""Stages that select features or check their number: VectorSlicer, VectorSizeHint, and the selectors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.stages.affine import Affine, AffineForm, Identity, Parameters, with_buffers
from sparkdiff.stages.base import register
from sparkdiff.stages.inputs import UNDECIDED, UNKNOWN_SLOT, Field, FieldReader, StaysInSparkError, slots_of
from sparkdiff.tensors.rows import NEVER, Rows, SparseRows, on_gpu, width, without_zeros


class Selection(Affine):
    """y = x[:, indices]; sparse stays sparse."""

    indices: Tensor

    def __init__(self, uid: str, indices: Sequence[int]):
        super().__init__()
        self.uid = uid
        self.register_buffer("indices", torch.tensor(indices, dtype=torch.int64))  # (k,) distinct

    def forward(self, x: Rows) -> Rows:  # (n, d) -> (n, k)
        if len(self.indices) and not on_gpu(self.indices) and int(self.indices.max()) >= width(x):
            raise InputError(
                f"{self.uid}: its input has {width(x)} entries per row, but it selects entry "
                f"{int(self.indices.max())}; pass vectors of the length that it was made for"
            )
        return x.select(self.indices) if isinstance(x, SparseRows) else x.index_select(1, self.indices)

    def affine_form(self, p: Parameters, slope: Tensor, widths: Sequence[int]) -> AffineForm:
        pulled = slope.new_zeros(*slope.shape[:-2], widths[0], slope.shape[-1])
        pulled.index_copy_(-2, self.indices, slope)
        return AffineForm(
            [pulled], 0.0, lambda gradients, _constant, _room: gradients[0].index_select(-2, self.indices)
        )

    def narrowed(self, columns: Sequence[Tensor | None], widths: Sequence[int]) -> tuple[Affine, Tensor | None]:
        [reached] = columns
        if reached is None:
            return self, None
        number = torch.arange(len(reached), device=reached.device)
        place = reached.new_full((widths[0],), -1).index_copy_(0, reached, number)[self.indices]
        kept = (place >= 0).nonzero()[:, 0]
        return with_buffers(self, indices=place.index_select(0, kept)), kept


@register("pyspark.ml.feature.ChiSqSelectorModel")
@register("pyspark.ml.feature.UnivariateFeatureSelectorModel")
@register("pyspark.ml.feature.VarianceThresholdSelectorModel")
class Selector(Selection):
    """The features that a fitted selector has kept, in ascending order."""

    @classmethod
    def from_spark(cls, stage: Any) -> "Selector":
        return cls(stage.uid, sorted(stage.selectedFeatures))


@register("pyspark.ml.feature.VectorSlicer")
class VectorSlicer(FieldReader, Selection):
    """The entries at the indices of the Param `indices`, then those with the names of the Param `names`, each in the
    Param's order; the names are looked up in the attributes of the input column.

    Source: org.apache.spark.ml.feature.VectorSlicer.getSelectedFeatureIndices, SparseVector.slice.
    """

    refusals = ("names, if no schema is given", "names that do not exist")
    size: int | None = None  # of the vectors in which the names were looked up

    @classmethod
    def from_spark(cls, stage: Any) -> "VectorSlicer":
        return cls(stage.uid, stage.getIndices())

    @classmethod
    def wants_fields(cls, stage: Any) -> bool:
        return bool(stage.getNames())

    @classmethod
    def from_fields(cls, stage: Any, fields: Sequence[Field | None]) -> "VectorSlicer":
        (name,), (field,) = cls.inputs(stage), fields
        undecided = StaysInSparkError(f"which entries of {name!r} have the selected names is {UNDECIDED}")
        if field is None or not field.vector:
            raise undecided
        attributes = field.attributes or {}
        places = {a["name"]: slot for slot, (_, a) in slots_of(attributes).items() if "name" in a}
        unknown = min((i for n, i in places.items() if n.endswith(UNKNOWN_SLOT)), default=None)
        for wanted in stage.getNames():
            if unknown is not None and places.get(wanted, unknown) >= unknown:
                raise undecided  # it may be in a vector of unknown width, or after it
            if wanted not in places:
                raise StaysInSparkError(f"no entry of {name!r} is named {wanted!r}, so Spark refuses the stage")
        module = cls(stage.uid, [*stage.getIndices(), *(places[n] for n in stage.getNames())])
        module.size = int(attributes["num_attrs"]) if "num_attrs" in attributes else None
        return module

    def forward(self, x: Rows) -> Rows:
        if self.size is not None and width(x) != self.size:
            raise InputError(
                f"{self.uid}: its input has {width(x)} entries per row, but the selected names were looked up "
                f"among {self.size}: pass the schema of the data, translate(model, schema=...)"
            )
        return without_zeros(super().forward(x), x) if self.exact_beyond < NEVER else super().forward(x)


@register("pyspark.ml.feature.VectorSizeHint")
class VectorSizeHint(Identity):
    """The column unchanged. With handleInvalid='error' vectors of another size raise an error, as in Spark;
    'optimistic' does not check them.
    """

    def __init__(self, uid: str, size: int, checks: bool):
        super().__init__()
        self.uid, self.size, self.checks = uid, size, checks

    @classmethod
    def outputs(cls, stage: Any) -> tuple[str, ...]:
        return cls.inputs(stage)

    @classmethod
    def from_spark(cls, stage: Any) -> "VectorSizeHint":
        return cls(stage.uid, stage.getSize(), stage.getHandleInvalid() == "error")

    def forward(self, x: Rows) -> Rows:  # (n, d) -> (n, d)
        if self.checks and len(x) and width(x) != self.size:
            raise InputError(
                f"{self.uid}: its input has {width(x)} entries per row instead of size={self.size}; correct "
                "the vectors, or set handleInvalid to 'optimistic'"
            )
        return x
