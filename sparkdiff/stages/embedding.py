"""Words as vectors that train: Word2Vec."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sparkdiff.jvm import words as vocabularies
from sparkdiff.sparse import SparseRows
from sparkdiff.stages.base import SUPPORT, FeatureStats, LabelStats, Rows, StageModule, parameter, register


@register("pyspark.ml.feature.Word2VecModel")
class Word2Vec(StageModule):
    """The mean of the words' vectors; unknown words count as 0, a row without words is 0. The vectors are float32.

    Strings never enter torch: Spark counts the words first, and this stage reads a vector of each known word's number and,
    last, the number of all words.

    Source: org.apache.spark.ml.feature.Word2VecModel.transform, which sums in double and multiplies by 1 / number.
    """

    weights = ("vectors",)
    single = True
    before = "Spark counts its words"

    def __init__(self, words: tuple[str, ...], vectors: Tensor):
        super().__init__()
        self.words = words
        self.vectors = parameter(vectors)  # (v, d)

    @classmethod
    def from_spark(cls, stage: Any) -> Word2Vec:
        words, vectors = vocabularies.vocabulary(stage)
        return cls(words, torch.from_numpy(vectors).double())

    @classmethod
    def made(cls, stage: Any) -> tuple[str, ...]:
        return (f"{stage.uid}__words",)

    @classmethod
    def preparation(cls, stage: Any) -> list[Any]:
        [column], [output] = cls.inputs(stage), cls.made(stage)
        return vocabularies.counting(vocabularies.vocabulary(stage)[0], column, output)

    def forward(self, x: Rows) -> Tensor:  # (n, v + 1) -> (n, d)
        counts, length = self._parts(x)
        sums = counts.matmul(self.vectors)
        return sums * torch.where(length > 0, 1 / torch.where(length > 0, length, 1.0), 0.0)[:, None]

    def _parts(self, x: Rows) -> tuple[Rows, Tensor]:
        """The counts of known words (n, v), and how many words there are (n,); at least the known ones."""
        size = len(self.words)
        if not isinstance(x, SparseRows):
            return x[:, :size], torch.maximum(x[:, size], x[:, :size].sum(1))
        rows, known = x.rows(), x.indices < size
        ends = torch.zeros(len(x) + 1, dtype=torch.int64)
        ends[1:] = torch.bincount(rows[known], minlength=len(x)).cumsum(0)
        empty = x.values.new_zeros(len(x))
        total = empty.index_add(0, rows[known], x.values[known])
        length = empty.index_add(0, rows[~known], x.values[~known])
        return SparseRows(x.indices[known], x.values[known], ends, size), torch.maximum(length, total)

    def recovered(self, x: Rows) -> tuple[pa.Array]:  # type: ignore[override]
        counts, length = self._parts(x)
        if isinstance(counts, SparseRows):
            rows, found, times = counts.rows(), counts.indices, counts.values.long()
        else:
            rows, found = counts.nonzero().unbind(1)
            times = counts[rows, found].long()
        unknown = next(w for w in ("?" * k for k in range(len(self.words) + 2)) if w not in set(self.words))
        left = length.long().index_add(0, rows, -times)
        # Of each row first the known words, then as many unknown ones as are left.
        of = torch.cat([rows.repeat_interleave(times), torch.arange(len(left)).repeat_interleave(left)])
        word = torch.cat([found.repeat_interleave(times), torch.full((int(left.sum()),), len(self.words))])
        order = of.argsort(stable=True)
        ends = np.zeros(len(left) + 1, dtype=np.int32)
        ends[1:] = torch.bincount(of, minlength=len(left)).cumsum(0).numpy()
        return (pa.ListArray.from_arrays(ends, pa.array([*self.words, unknown]).take(pa.array(word[order].numpy()))),)

    def nominal(self) -> Tensor:
        return torch.arange(len(self.words) + 1)

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        size = self.vectors.detach().square().mean().sqrt()
        return {"vectors": size if size > 0 else torch.ones_like(size)}

    def supported(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        return {"vectors": (x.support[: len(self.words)] >= SUPPORT)[:, None].expand_as(self.vectors)}

    def to_spark(self, stage: Any) -> Any:
        return vocabularies.word2vec(stage, self.words, self.weight("vectors").astype(np.float32))
