"""Each known way to be wrong about ALS and Word2Vec breaks a law when it is planted."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from pyspark.sql import DataFrame, SparkSession
from torch import Tensor

from sparkdiff.jvm import embeddings
from sparkdiff.stages.base import StageModule
from sparkdiff.stages.constraints import Float32Values
from sparkdiff.stages.embedding import Word2Vec
from sparkdiff.stages.recommendation import ALS
from sparkdiff.tensors.rows import Rows, SparseRows
from sparkdiff.testing import LawBroken, check_stage
from tests.support.recommender_models import als, documents, fitted, pairs, word2vec

margin, forward = ALS.margin, Word2Vec.forward


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
    return embeddings.als(stage, (self.items.numpy(), items), (self.users.numpy(), users))


def unordered(self: Any, stage: Any) -> Any:
    users, items = (self.weight(n).astype("float32") for n in ("userFactors", "itemFactors"))
    return embeddings.als(stage, (self.users.numpy(), users[::-1]), (self.items.numpy(), items))


def known_words_only(self: Any, x: Rows, length: Tensor) -> Tensor:
    known = x.matmul(torch.ones(len(self.words), 1, dtype=torch.float64))
    return forward(self, x, length) / torch.where(known > 0, known, 1.0)


def sum_of_vectors(self: Any, x: Rows, length: Tensor) -> Tensor:
    return forward(self, x, length) * length[:, None]


def each_word_once(self: Any, x: Rows, length: Tensor) -> Tensor:
    one = 1 / length.clamp_min(1)
    cut = torch.minimum(x.to_dense() if isinstance(x, SparseRows) else x, one[:, None])
    return forward(self, cut, length)


def empty_is_nan(self: Any, x: Rows, length: Tensor) -> Tensor:
    return torch.where(length[:, None] > 0, forward(self, x, length), torch.nan)


TRAPS: dict[str, tuple[type[Any], str, Callable[..., Any]]] = {
    "unknown id is 0": (ALS, "margin", unknown_is_0),
    "unknown id is another": (ALS, "_places", nearest_id),
    "computed in double": (ALS, "margin", in_double),
    "tables swapped": (ALS, "to_spark", tables_swapped),
    "rows of a table moved": (ALS, "to_spark", unordered),
    "parameters not rounded": (Float32Values, "value", lambda self, start, move: start + move),
    "unknown words don't count": (Word2Vec, "forward", known_words_only),
    "a sum for a mean": (Word2Vec, "forward", sum_of_vectors),
    "repeated words count once": (Word2Vec, "forward", each_word_once),
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
