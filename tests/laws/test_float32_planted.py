"""Each known way to be wrong about ALS and Word2Vec breaks a law when it is planted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from pyspark.sql import DataFrame, SparkSession
from recommending import als, documents, fitted, pairs, word2vec
from torch import Tensor

from sparkdiff.jvm import factors
from sparkdiff.stages.base import Rows, StageModule
from sparkdiff.stages.embedding import Word2Vec
from sparkdiff.stages.recommendation import ALS
from sparkdiff.testing import LawBroken, check_stage

margin, written, parts, kept = ALS.margin, ALS.to_spark, Word2Vec._parts, StageModule.settle_


def unknown_is_0(self: Any, user: Tensor, item: Tensor) -> Tensor:
    return margin(self, user, item).nan_to_num(0.0)


def nearest_id(self: Any, known: Tensor, ids: Tensor, name: str) -> Tensor:
    return torch.searchsorted(known, ids.long()).clamp_max(len(known) - 1)


def in_double(self: Any, user: Tensor, item: Tensor) -> Tensor:
    found = self.places(user, item)
    u, i = (found[n] for n in ("userFactors", "itemFactors"))
    product = (self.userFactors[u.clamp_min(0)] * self.itemFactors[i.clamp_min(0)]).sum(1)
    return torch.where((u >= 0) & (i >= 0), product, torch.nan)


def tables_swapped(self: Any, stage: Any) -> Any:
    users, items = (self.weight(n).astype("float32") for n in ("userFactors", "itemFactors"))
    return factors.als(stage, (self.items.numpy(), items), (self.users.numpy(), users))


def unordered(self: Any, stage: Any) -> Any:
    users, items = (self.weight(n).astype("float32") for n in ("userFactors", "itemFactors"))
    return factors.als(stage, (self.users.numpy(), users[::-1]), (self.items.numpy(), items))


def unrounded(self: Any) -> None:
    if not self.single:
        kept(self)


def known_words_only(self: Any, x: Rows) -> tuple[Rows, Tensor]:
    counts, _ = parts(self, x)
    return counts, counts.matmul(torch.ones(len(self.words), 1, dtype=torch.float64))[:, 0]


def sum_of_vectors(self: Any, x: Rows) -> tuple[Rows, Tensor]:
    counts, length = parts(self, x)
    return counts, torch.ones_like(length)


def each_word_once(self: Any, x: Rows) -> tuple[Rows, Tensor]:
    counts, length = parts(self, x)
    return counts.with_values(counts.values.clamp_max(1)) if hasattr(counts, "values") and not isinstance(
        counts, Tensor
    ) else counts.clamp_max(1), length  # fmt: skip


def empty_is_nan(self: Any, x: Rows) -> Tensor:
    counts, length = parts(self, x)
    return counts.matmul(self.vectors) / length[:, None]


TRAPS: dict[str, tuple[type[StageModule], str, Callable[..., Any]]] = {
    "unknown id is 0": (ALS, "margin", unknown_is_0),
    "unknown id is another": (ALS, "_places", nearest_id),
    "computed in double": (ALS, "margin", in_double),
    "tables swapped": (ALS, "to_spark", tables_swapped),
    "rows of a table moved": (ALS, "to_spark", unordered),
    "parameters not rounded, ALS": (StageModule, "settle_", unrounded),
    "unknown words don't count": (Word2Vec, "_parts", known_words_only),
    "a sum for a mean": (Word2Vec, "_parts", sum_of_vectors),
    "repeated words count once": (Word2Vec, "_parts", each_word_once),
    "nothing said is NaN": (Word2Vec, "forward", empty_is_nan),
}


@pytest.fixture(scope="module")
def cases(spark: SparkSession) -> dict[type[StageModule], tuple[Any, DataFrame]]:
    bases, random = fitted(spark), np.random.default_rng(7)
    return {
        ALS: (als(bases[0], random, 1e3), pairs(spark).coalesce(1)),
        Word2Vec: (word2vec(bases[1], random), documents(spark).coalesce(1)),
    }


@pytest.mark.parametrize("trap", TRAPS)
def test_every_trap_is_seen(cases: dict[type[StageModule], tuple[Any, DataFrame]], trap: str) -> None:
    module, method, planted = TRAPS[trap]
    stage, df = cases.get(module, cases[ALS])
    with patch.object(module, method, planted), pytest.raises(LawBroken):
        check_stage(stage, df)
