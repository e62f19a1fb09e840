"""States of candidates (see `Candidates.state`): moved to the CPU, reduced to some candidates, or joined."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparkdiff.tensors.device import home

State = Mapping[str, Any]


def at_home(value: Any) -> Any:
    """A state with all its tensors on the CPU."""
    if isinstance(value, Tensor):
        return home(value)
    if isinstance(value, Mapping):
        return {key: at_home(x) for key, x in value.items()}
    return [at_home(x) for x in value] if isinstance(value, list) else value


def of(state: State, rows: Sequence[int], newton: Sequence[int]) -> dict[str, Any]:
    """The state of the candidates `rows`, which are in ascending order.

    Args:
        newton: indices of the candidates in `state` that take Newton steps.
    """
    at = torch.tensor(list(rows), device=state["u"].device)
    out = dict(state)
    for name in ("flat", "u", "average", "total"):
        out[name] = state[name][at] if state[name] is not None else None
    if state["optimizer"]:
        out["optimizer"] = {n: x[at] if x.shape == state["u"].shape else x for n, x in state["optimizer"].items()}
    if "momentum" in state:
        out["momentum"] = state["momentum"][at]
    out["whole"] = state["whole"][at] if len(state["whole"]) else state["whole"]
    out["bent"] = state["bent"][[j for j, k in enumerate(newton) if k in rows]]
    out["slow"] = {new: state["slow"][k] for new, k in enumerate(rows) if k in state["slow"]}
    return out


def concatenate(parts: Sequence[State]) -> dict[str, Any]:
    """The state of the candidates of all parts, one part after the other."""
    first = parts[0]
    out = dict(first)
    for name in ("flat", "u", "average", "total"):
        out[name] = None if first[name] is None else torch.cat([part[name] for part in parts])
    starts = list(itertools.accumulate((len(part["u"]) for part in parts), initial=0))
    stepping = [part for part in parts if part["optimizer"]]
    out["optimizer"] = None
    if stepping:
        # Candidates that step once an epoch have no moments: if a part has only such candidates, their moments are 0.
        whole = {
            n: torch.cat([(p["optimizer"] or {}).get(n, torch.zeros_like(p["u"])) for p in parts])
            for n in ("mean", "square")
        }
        out["optimizer"] = {**stepping[0]["optimizer"], **whole}
    if any(len(part["whole"]) for part in parts):
        out["whole"] = torch.cat([p["whole"] if len(p["whole"]) else torch.zeros_like(p["u"]) for p in parts])
    out["bent"] = torch.cat([part["bent"] for part in parts])
    out["slow"] = {k + start: x for part, start in zip(parts, starts, strict=False) for k, x in part["slow"].items()}
    return out


def consecutive_runs(number: int, parts: int) -> list[list[int]]:
    """The numbers 0, ..., number - 1 in at most `parts` consecutive runs of about the same length, none of them empty."""
    bounds = [number * part // parts for part in range(parts + 1)]
    return [list(range(a, b)) for a, b in itertools.pairwise(bounds) if b > a]
