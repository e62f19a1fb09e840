"""A fifth law, checked wherever the four are: on a fake GPU a stage gives the CPU's outputs, and in float32 nearly those."""

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparkdiff import testing
from sparkdiff.stages.base import StageModule
from sparkdiff.stages.clustering import GaussianMixture
from sparkdiff.stages.factorization_machine import FactorizationMachine
from sparkdiff.stages.forest import Trees
from sparkdiff.tensors.device import CPU, Place, copy_to
from sparkdiff.tensors.rows import Nulls, Rows, SparseRows, dense
from tests.support import fake_gpu

GPU, SINGLE = Place(torch.device(fake_gpu.NAME, 0)), Place(dtype=torch.float32)
MODERATE = 1e3
"""The largest number, and the inverse of the smallest, with which float32 is asked for."""
Given = tuple[Sequence[Rows], Nulls]
compare_with_spark = testing._compare


checked: Counter[type] = Counter()
"""How many stages of a class a test has compared on other devices."""
MOST = None if os.environ.get("SPARKDIFF_EXAMPLES") != "1" else 4
"""Of a class; the fake GPU is slow, and asks the more of a class the same."""


@torch.no_grad()
def compare(trial: Any, given: Given, found: Any, tolerance: float, first: int) -> None:
    """What `check_stages` compares, and then the two places."""
    compare_with_spark(trial, given, found, tolerance, first)
    if trial.law == "parity" and (MOST is None or checked[type(trial.original)] < MOST):
        checked[type(trial.original)] += 1
        same_on_a_gpu(trial.module, given)
        kind, stage = type(trial.module), trial.original
        near_in_float32(trial.module, kind.labels(stage), kind.outputs(stage), given)


def outputs(module: StageModule, given: Given) -> tuple[Rows, ...]:
    out = module(*given[0], **({"nulls": given[1]} if module.takes_nulls else {}))
    return out if isinstance(out, tuple) else (out,)


def placed(given: Given, at: Place) -> Given:
    return [at.rows(x) for x in given[0]], [None if x is None else at.numbers(x) for x in given[1]]


def same_on_a_gpu(module: StageModule, given: Given) -> None:
    if any(
        isinstance(m, FactorizationMachine) for m in module.modules()
    ):  # a GPU has an order of its own for their large squares
        return
    there = outputs(copy_to(module, GPU.device), placed(given, GPU))
    for one, other in zip(there, outputs(module, given), strict=True):
        assert isinstance(one, SparseRows) == isinstance(other, SparseRows)
        assert one.device == GPU.device
        torch.testing.assert_close(dense(one).cpu(), dense(other), rtol=0, atol=0, equal_nan=True)


def near_in_float32(module: StageModule, labels: Sequence[str], columns: Sequence[str], given: Given) -> None:
    """Of numbers that float32 holds, so that nothing jumps but classes; not of trees and identifiers, which float32 isn't for,
    nor of singular covariances, whose rank depends on the precision.
    """
    held = [x for x in (*module.parameters(), *module.buffers()) if x.is_floating_point()]
    trees = any(isinstance(m, Trees) for m in module.modules())
    singular = isinstance(module, GaussianMixture) and bool((torch.linalg.eigvalsh(module.sigmas)[:, 0] < 1e-3).any())
    if trees or singular or module.reads_identifiers or not all(_moderate(x).all() for x in held):
        return
    plain = [dense(x) for x in given[0]]
    kept = torch.stack([_moderate(x).view(len(x), -1).all(1) for x in plain]).all(0)
    rounded = [x[kept].float().double() for x in plain]
    nulls = [None if x is None else x[kept] for x in given[1]]
    of_double = copy_to(copy_to(module, CPU.device, torch.float32), CPU.device, torch.float64)
    of_single = copy_to(module, CPU.device, torch.float32)
    found = outputs(of_single, placed((rounded, nulls), SINGLE))
    size = max([1.0, *(float(x.abs().max()) for x in (*held, *rounded) if x.numel())])
    for name, one, other in zip(columns, found, outputs(of_double, (rounded, nulls)), strict=True):
        assert one.dtype == torch.float32, (name, one.dtype)
        if name not in labels:
            a, b = dense(one).double(), dense(other).float().double()  # what is too large is infinite
            wrong = (a - b).abs() > 1e-4 * size * b.abs().clamp_min(1)
            assert not wrong.any(), (module, name, a[wrong][0], b[wrong][0])


def _moderate(x: Tensor) -> Tensor:
    return (x == 0) | ((x.abs() <= MODERATE) & (x.abs() >= 1 / MODERATE))
