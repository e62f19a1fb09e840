"""The translations of MLlib's stages. Importing this package registers all of them."""

import importlib
import pkgutil

import torch

# MKL chooses the code that it runs for torch's exponentials at the first call. If two of its threads make that call at once, on
# a busy machine, then in one of thirty processes one thread's exponentials have eight correct digits only. So few numbers as here
# are computed by one thread; every process that computes imports this package first.
torch.exp(torch.zeros(8, dtype=torch.float64))
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
