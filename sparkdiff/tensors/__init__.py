"""Helpers for tensors that all other packages use: `rows` has the columns of a batch, dense or sparse, `device` is the
only module that names devices, `backward` starts a backward pass, `team` sums over the processes of a training run.
"""
