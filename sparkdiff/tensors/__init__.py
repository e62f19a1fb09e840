"""Helpers for tensors that all other packages use: `rows` has the columns of a batch, dense or sparse, `device` is the
only module that names devices, `light_torch` replaces parts of torch that import much, `team` sums over the processes of a
training run.
"""
