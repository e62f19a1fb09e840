"""Translations of MLlib's stages. Importing this package registers all of them."""

import importlib
import pkgutil

import torch

# MKL chooses its code for torch's exponentials at the first call. If two of its threads make that call at the same
# time, on a busy machine, then in one of thirty processes the exponentials of one thread have only eight correct
# digits. One thread computes a small tensor, so this call avoids the race; every process that computes imports this
# package first.
torch.exp(torch.zeros(8, dtype=torch.float64))
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
