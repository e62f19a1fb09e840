"""Tensors as all other packages use them: `rows` is a column of a batch, dense or sparse, `device` the only module that
names devices, `products` starts a backward pass, `team` sums over the processes of a training.
"""

__all__ = ["device", "products", "rows", "team"]
