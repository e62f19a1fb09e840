"""Word2Vec: word vectors that train."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sparkdiff.jvm import embeddings
from sparkdiff.stages.affine import AffineForm, MatrixProduct, Parameters
from sparkdiff.stages.base import FeatureStats, LabelStats, parameter, register
from sparkdiff.stages.inputs import PreparedStage
from sparkdiff.tensors.rows import NEVER, Rows, SparseRows, known_any, sparse_where


@register("pyspark.ml.feature.Word2VecModel")
class Word2Vec(PreparedStage, MatrixProduct):
    """The mean of the words' vectors; unknown words count as 0. A row without words is a sparse vector without entries. The
    words' vectors are float32.

    Strings cannot enter torch, so Spark first computes, for each row, the share of each known word among all words of
    the row, and the number of words.

    Source: org.apache.spark.ml.feature.Word2VecModel.transform, which sums in double and multiplies by 1 / number.
    """

    weights = ("vectors",)
    feature_axis = {"vectors": 0}
    float32 = True
    preparation_note = "Spark counts its words"

    def __init__(self, words: tuple[str, ...], vectors: Tensor):
        super().__init__()
        self.words = words
        self.vectors = parameter(vectors)  # (v, d)

    @classmethod
    def from_spark(cls, stage: Any) -> "Word2Vec":
        words, vectors = embeddings.vocabulary(stage)
        return cls(words, torch.from_numpy(vectors).double())

    @classmethod
    def prepared_columns(cls, stage: Any) -> tuple[str, ...]:
        return f"{stage.uid}__words", f"{stage.uid}__length"

    @classmethod
    def preparation(cls, stage: Any) -> list[Any]:
        [column], (shares, length) = cls.inputs(stage), cls.prepared_columns(stage)
        return embeddings.counting(embeddings.vocabulary(stage)[0], column, shares, length)

    def forward(self, x: Rows, length: Tensor) -> Rows:  # (n, v), (n,) -> (n, d)
        out: Tensor = x.matmul(self.vectors)
        told = self.exact_beyond < NEVER and known_any(length == 0)
        return sparse_where(out, (length > 0)[:, None].expand_as(out)) if told else out

    def affine_form(self, p: Parameters, slope: Tensor, widths: Sequence[int]) -> AffineForm:
        vectors = p["vectors"]

        def back(gradients: list[Tensor], _constant: Tensor, room: Parameters) -> Tensor:
            if "vectors" in room:
                room["vectors"].add_(gradients[0] @ slope.mT)
            return vectors.mT @ gradients[0]

        return AffineForm([vectors @ slope, slope.new_zeros(1, slope.shape[-1])], 0.0, back)

    def original_inputs(self, x: Rows, length: Tensor) -> tuple[pa.Array]:  # type: ignore[override]
        if isinstance(x, SparseRows):
            rows, found, shares = x.rows(), x.indices, x.values
        else:
            rows, found = x.nonzero().unbind(1)
            shares = x[rows, found]
        times = (shares * length[rows]).round().long()
        known = set(self.words)
        unknown = next(w for w in ("?" * k for k in range(len(known) + 1)) if w not in known)
        left = length.long().index_add(0, rows, -times)
        # Per row, first the known words, then the rest as unknown words.
        of = torch.cat([rows.repeat_interleave(times), torch.arange(len(left)).repeat_interleave(left)])
        word = torch.cat([found.repeat_interleave(times), torch.full((int(left.sum()),), len(self.words))])
        order = of.argsort(stable=True)
        ends = np.zeros(len(left) + 1, dtype=np.int32)
        ends[1:] = torch.bincount(of, minlength=len(left)).cumsum(0).numpy()
        return (pa.ListArray.from_arrays(ends, pa.array([*self.words, unknown]).take(pa.array(word[order].numpy()))),)

    def nominal_features(self) -> Tensor:
        return torch.arange(len(self.words))

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        size = self.vectors.detach().square().mean().sqrt()
        return {"vectors": size if size > 0 else torch.ones_like(size)}

    def to_spark(self, stage: Any) -> Any:
        return embeddings.word2vec(stage, self.words, self.weight("vectors").astype(np.float32))
