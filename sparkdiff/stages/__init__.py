"""The translations of MLlib's stages; importing the package registers all of them."""

from sparkdiff.stages import (
    assembling,
    bayes,
    encoding,
    factorization_machine,
    isotonic,
    linear,
    one_vs_rest,
    perceptron,
    projection,
    scaling,
    support_vector,
    survival,
    trees,
)

__all__ = [
    "assembling", "bayes", "encoding", "factorization_machine", "isotonic", "linear", "one_vs_rest", "perceptron",
    "projection", "scaling", "support_vector", "survival", "trees",
]  # fmt: skip
