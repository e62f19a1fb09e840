"""Objectives of loss functions that users write, with checks of what they return and change."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.objectives.objective import Objective, zero_margin
from sparkdiff.options import callable_name
from sparkdiff.stages.predictor import Predictor
from sparkdiff.stages.trainable import LabelStats
from sparkdiff.tensors.rows import on_gpu


def function_objective(
    loss: Callable[..., Tensor], head: Predictor, columns: tuple[str, ...], y: LabelStats
) -> Objective:
    """The objective of a function loss(outputs, label, weight), of single rows or of a whole batch.

    Args:
        columns: the output columns of the predictor, which the function gets by name.
    """
    name = callable_name(loss)

    def value(margin: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        out = _returned(loss, head, columns, margin, label, weight)
        if not isinstance(out, Tensor):
            raise InputError(f"the loss {name} returned {out!r}; it must return a torch tensor with one value per row")
        if not out.is_floating_point():
            raise InputError(
                f"the loss {name} returned a tensor of {out.dtype}; its values must be real numbers, as torch.float64"
            )
        if margin.requires_grad and not out.requires_grad:
            raise InputError(
                f"no gradient passes through the loss {name}: compute it with torch, without detach, numpy or "
                "the predicted class"
            )
        return out.to(torch.float64)

    def rows(margin: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        out = value(margin, label, weight)
        if out.shape != label.shape:
            raise InputError(
                f"the loss {name} returned shape {tuple(out.shape)}; it must be one unweighted value per row, "
                f"{tuple(label.shape)}, or one value for the whole batch, (), also for a batch without rows"
            )
        return out

    def batch(margin: Tensor, label: Tensor, weight: Tensor, groups: Mapping[str, Tensor]) -> Tensor:
        out = value(margin, label, weight)
        if out.ndim:
            raise InputError(
                f"the loss {name} returned shape {tuple(out.shape)}, but () before; always return the same kind"
            )
        return out

    return (
        Objective(name, batch=batch)
        if _is_of_batch(loss, head, columns, y)
        else Objective(name, rows, elementwise=False)
    )


def _returned(
    loss: Callable[..., Any], head: Predictor, columns: tuple[str, ...], margin: Tensor, label: Tensor, weight: Tensor
) -> Any:
    """What a callable returns for these rows.

    Raises:
        InputError: it changed what it was given in place, which other candidates and epochs are given too; or it computes on
            the CPU while its inputs lie on a GPU.
    """
    outputs = dict(zip(columns, head.columns(margin), strict=True))
    given = (*outputs.items(), ("label", label), ("weight", weight))
    before = [x._version for _, x in given]
    try:
        out = loss(outputs, label, weight)
    except (RuntimeError, TypeError) as e:
        if not on_gpu(margin) or not any(said in str(e) for said in ("on the same device", "to numpy")):
            raise
        raise InputError(
            f"the loss {callable_name(loss)} can't compute on {margin.device} ({str(e).splitlines()[0]}): make tensors where its "
            "inputs are, as label.new_tensor(...), without numpy; or set device='cpu'"
        ) from e
    if changed := [name for (name, x), version in zip(given, before, strict=True) if x._version != version]:
        raise InputError(
            f"the loss {callable_name(loss)} changes {', '.join(map(repr, changed))} in place: use functions that return "
            "a new tensor, for example y.log1p() instead of y.log1p_()"
        )
    return out


@torch.no_grad()
def _is_of_batch(loss: Callable[..., Tensor], head: Predictor, columns: tuple[str, ...], y: LabelStats) -> bool:
    """Whether a callable returns one value for all rows: called with no rows, or with two rows if it fails with
    none.

    Raises:
        InputError: it changes what it is given in place.
    """
    for n in (0, 2):
        margin = zero_margin(head, n)
        label = torch.tensor([y.low, y.high], dtype=torch.float64, device=margin.device)[:n]
        try:
            out = _returned(loss, head, columns, margin, label, torch.ones_like(label))
        except InputError:
            raise
        except Exception:  # whatever it is, it will show on real rows, with these named
            continue
        return isinstance(out, Tensor) and out.ndim == 0
    return False
