"""What other modules ask about a stage's columns."""

from typing import ClassVar

import torch
from torch import Tensor


class Facts:
    """The defaults fit most stages; a stage declares what is different about its columns."""

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

    def nominal_features(self) -> Tensor:
        """Features (q,) int64 of the input that are categories, to which no noise can be added."""
        return torch.empty(0, dtype=torch.int64)

    def critical_values(self) -> tuple[tuple[float, ...], ...]:
        """Per scalar input column, values at which the output jumps; parity is checked on rows that hold them."""
        return ()

    def critical_rows(self, row: Tensor) -> Tensor:
        """Rows like `row` (1, d), of a stage that reads a vector, at which its output jumps; (m, d)."""
        return row[:0]
