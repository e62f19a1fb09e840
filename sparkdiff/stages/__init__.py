"""The translations of MLlib's stages; importing the package registers all of them."""

from sparkdiff.stages import (
    assembling,
    bayes,
    encoding,
    factorization_machine,
    isotonic,
    linear,
    perceptron,
    projection,
    scaling,
    support_vector,
    trees,
)

__all__ = [
    "assembling", "bayes", "encoding", "factorization_machine", "isotonic", "linear", "perceptron", "projection", "scaling",
    "support_vector", "trees",
]  # fmt: skip
