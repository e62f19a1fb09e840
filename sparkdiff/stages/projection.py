"""Linear projections: PCA, DCT."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.stages.affine import Affine, AffineForm, MatrixProduct, Parameters
from sparkdiff.stages.base import FeatureStats, LabelStats, parameter, register
from sparkdiff.tensors.rows import Rows, dense, known_any, product


@register("pyspark.ml.feature.PCAModel")
class PCA(MatrixProduct):
    """y = x @ pc, without centring, as Spark does. `explainedVariance` is written back as it was fitted."""

    weights = ("pc", "explainedVariance")
    feature_axis = {"pc": 0}
    makes_dense = "each component adds up all entries"

    def __init__(self, pc: Tensor, explainedVariance: Tensor):
        super().__init__()
        self.pc = parameter(pc)  # (d, k)
        self.register_buffer("explainedVariance", explainedVariance)  # (k,)

    def forward(self, x: Rows) -> Tensor:  # (n, d) -> (n, k)
        return product(x, self.pc)

    def affine_form(self, p: Parameters, slope: Tensor, widths: Sequence[int]) -> AffineForm:
        pc = p["pc"]

        def back(gradients: list[Tensor], _constant: Tensor, room: Parameters) -> Tensor:
            if "pc" in room:
                outer = gradients[0] * slope.mT if slope.shape[-1] == 1 else gradients[0] @ slope.mT
                room["pc"].add_(outer)  # for one margin, products are as exact and take an eighth of the time
            return pc.mT @ gradients[0]

        return AffineForm([pc @ slope], 0.0, back)

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        # Rotations act on x in its own scale: one unit turns a component by one standard deviation of a column.
        spread = torch.where(x.std > 0, x.std, 1.0)
        out = ((x.std[:, None] * self.pc.detach()) ** 2).sum(0).sqrt().clamp_min(1e-12)  # (k,) for uncorrelated columns
        return {"pc": (out / out.mean())[None, :] * (spread.mean() / spread)[:, None]}


@register("pyspark.ml.feature.DCT")
class DCT(Affine):
    """The orthonormal cosine transform of type II of each row, or its inverse (type III).

    Each output is a sum over all inputs, so its rounding error is relative to the row's largest entry. Rows with
    entries that are infinite, or so large that sums may overflow, are refused: in Spark, the order of the FFT's
    additions decides which outputs become infinite or NaN.

    Source: org.apache.spark.ml.feature.DCT, with the DoubleDCT_1D of JTransforms, scaled.
    """

    makes_dense = "each output adds up all entries"
    largest = 1e300

    def __init__(self, inverse: bool, uid: str = "DCT", name: str = ""):
        super().__init__()
        self.inverse, self.uid, self.name = inverse, uid, name

    @classmethod
    def from_spark(cls, stage: Any) -> "DCT":
        return cls(stage.getInverse(), stage.uid, *cls.inputs(stage))

    def forward(self, x: Rows) -> Tensor:  # (n, d) -> (n, d)
        x = dense(x)
        if not x.numel():  # the FFT refuses it
            return x
        if known_any(wrong := x.detach().abs() > self.largest):
            raise InputError(
                f"{self.uid}: column {self.name!r} holds a vector with the entry {x[wrong][0].item()!r}, of which Spark makes "
                "infinities or NaN by the order of its additions; leave such rows out, or bound their entries before"
            )
        return inverse_cosine_transform(x) if self.inverse else cosine_transform(x)

    def affine_form(self, p: Parameters, slope: Tensor, widths: Sequence[int]) -> AffineForm:
        # Orthonormal: the transposed matrix is the inverse one.
        there, back = cosine_transform, inverse_cosine_transform
        if not self.inverse:
            there, back = back, there
        pulled = there(slope.mT).mT
        return AffineForm([pulled], 0.0, lambda gradients, _constant, _room: back(gradients[0].mT).mT)


def cosine_transform(x: Tensor) -> Tensor:
    """Orthonormal DCT-II along the last axis, (..., d) -> (..., d), with one FFT (Makhoul 1980)."""
    turned = torch.fft.fft(torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1)) * _turn(x)
    return turned.real * _weights(x)


def inverse_cosine_transform(x: Tensor) -> Tensor:
    """The inverse of `cosine_transform`, a DCT-III."""
    d = x.shape[-1]
    real = x / _weights(x)
    imaginary = torch.cat([torch.zeros_like(real[..., :1]), real[..., 1:].flip(-1)], -1)
    mixed = torch.fft.ifft(torch.complex(real, -imaginary) * _turn(x).conj()).real
    half = (d + 1) // 2
    out = torch.empty_like(mixed)
    out[..., ::2], out[..., 1::2] = mixed[..., :half], mixed[..., half:].flip(-1)
    return out


def _turn(x: Tensor) -> Tensor:
    """exp(-i pi k / 2d), (d,), for rows like these (..., d)."""
    d = x.shape[-1]
    angle = torch.arange(d, dtype=x.dtype, device=x.device) * (-math.pi / (2 * d))
    return torch.polar(torch.ones_like(angle), angle)


def _weights(x: Tensor) -> Tensor:
    """Factors that make the transform of rows like these (..., d) orthonormal, (d,)."""
    d = x.shape[-1]
    weights = x.new_full((d,), math.sqrt(2 / d))
    weights[:1] = math.sqrt(1 / d)  # not `weights[0]`, which would wait for a GPU
    return weights
