"""Devices, dtypes and threads of training; the only module that names devices and moves tensors between them."""

import contextlib
import io
import os
import pickle
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sparkdiff.errors import InputError
from sparkdiff.machine import resources
from sparkdiff.tensors.rows import Rows, SparseRows

T = TypeVar("T")
# cuBLAS reads this at its first use in the process: results repeat only with a workspace of fixed size.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
ALONE = threading.RLock()
"""A lock for a thread that records a CUDA graph or releases memory: no memory may be released while a graph is
recorded.
"""
WORTH = 1e8
"""Number of multiplications in a pass from which several threads pay off; a single thread needn't wait for others,
which other programs may delay."""
PRECISIONS = {"float64": torch.float64, "float32": torch.float32}
"""Dtypes of rows in training; weights, sums and losses are always float64."""


_CPU = torch.device("cpu")


@contextlib.contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch use this number of threads within this context."""
    before = torch.get_num_threads()
    if number != before:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def threads_for(multiplications: float) -> contextlib.AbstractContextManager[None]:
    """Limit threads to the number of idle cores for a pass of this size, and to one for a small pass.

    Threads wait for each other in each operation: if other programs use the cores, too, two threads take several times
    as long as one.
    """
    return torch_threads(1 if multiplications < WORTH else min(torch.get_num_threads(), resources.idle_cores()))


@dataclass(frozen=True)
class Place:
    """A device, and the dtype of rows on it."""

    device: torch.device = _CPU
    dtype: torch.dtype = torch.float64

    @property
    def plain(self) -> bool:
        """True if rows stay as the stream reads them: float64 on the CPU."""
        return self.device.type == "cpu" and self.dtype == torch.float64

    @property
    def on_cpu(self) -> bool:
        return self.device.type == "cpu"

    @property
    def name(self) -> str:
        return str(self.device)

    def rows(self, x: Rows, *, wait: bool = True) -> Rows:
        """Rows moved to this device; floats are converted to this place's dtype if it is narrower than theirs.

        Args:
            wait: False to copy rows from the CPU asynchronously.
        """
        if isinstance(x, SparseRows):
            indices, offsets = self.numbers(x.indices, wait=wait), self.numbers(x.offsets, wait=wait)
            return SparseRows(indices, self.rows(x.values, wait=wait), offsets, x.width)  # type: ignore[arg-type]
        # The dtype first: a copy between devices that changes the dtype waits for both.
        narrows = x.is_floating_point() and x.itemsize > self.dtype.itemsize
        return self.numbers(x.to(self.dtype) if narrows else x, wait=wait)

    def numbers(self, x: Tensor, *, wait: bool = True) -> Tensor:
        """A tensor moved to this device, with its dtype unchanged.

        Args:
            wait: False to copy a tensor from the CPU asynchronously.
        """
        if not wait and x.is_cpu and self.device.type == "cuda":
            x = x.pin_memory()
        return x.to(self.device, non_blocking=not wait)

    def free(self) -> int | None:
        """Bytes that can still be allocated; None on the CPU."""
        if self.on_cpu:
            return None
        self.trim()
        return int(module_of(self.device).mem_get_info(self.device)[0])

    def trim(self) -> None:
        """Return the memory that torch keeps in its cache to the device."""
        if not self.on_cpu:
            with ALONE, contextlib.suppress(RuntimeError):  # torch raises it after a failed recording
                module_of(self.device).empty_cache()


CPU = Place()


def module_of(device: torch.device) -> Any:
    """torch's module with the streams, graphs and memory of a kind of device, such as `torch.cuda` for NVIDIA GPUs."""
    return torch.get_device_module(device)


def home(x: Tensor) -> Tensor:
    """The tensor on the CPU."""
    return x.detach().to("cpu")


def gpus() -> int:
    """Number of GPUs that this process sees; doesn't import CUDA's libraries if torch was built without them."""
    return torch.cuda.device_count() if torch.backends.cuda.is_built() else 0


def why_no_gpu() -> str:
    """The reason why torch sees no GPU, as part of a sentence."""
    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__} was built without CUDA: install a build with it (https://pytorch.org/get-started)"
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        shown = os.environ["CUDA_VISIBLE_DEVICES"]
        return f"CUDA_VISIBLE_DEVICES={shown!r} shows it none: unset it, or name one that `nvidia-smi` lists"
    return "torch finds no NVIDIA driver or no GPU: `nvidia-smi` tells what is there"


def place(device: str, precision: str, local: int = 0) -> Place:
    """The device and dtype that the options `device` and `precision` name.

    Args:
        device: `cpu`, `cuda` or `cuda:<number>`.
        local: the rank of this process among the training processes on its machine, which share the GPUs.

    Raises:
        InputError: torch sees no such device.
    """
    dtype = PRECISIONS[precision]
    if device == "cpu":
        return replace(CPU, dtype=dtype)
    found = gpus()
    if not found:
        raise InputError(f"device={device!r}, but {why_no_gpu()}; or set device='cpu'")
    number = int(device.partition(":")[2] or local % found)
    if number >= found:
        raise InputError(
            f"device={device!r}, but torch sees {found} GPUs, numbered from 0: choose one, or set device='cuda'"
        )
    return Place(torch.device("cuda", number), dtype)


def copy_to(value: T, device: torch.device, dtype: torch.dtype | None = None) -> T:
    """A deep copy of a value with all its tensors on this device; what is shared within the value stays shared in the
    copy.

    Args:
        dtype: the dtype of all floats; None: unchanged.

    Raises:
        InputError: the value contains something that can't be copied.
    """
    kept: list[Any] = []
    there: dict[int, Tensor] = {}

    class TensorPickler(pickle.Pickler):
        def persistent_id(self, x: Any) -> int | None:
            # Classes and functions that were passed by value, as those of a notebook, have no name by which pickle finds them.
            if not isinstance(x, (Tensor, type)) and not (isinstance(x, FunctionType) and x.__closure__ is None):
                return None
            kept.append(x)
            return len(kept) - 1

    class TensorUnpickler(pickle.Unpickler):
        def persistent_load(self, number: int) -> Any:
            x = kept[number]
            if not isinstance(x, Tensor):
                return x
            if id(x) not in there:
                new = x.detach().to(device, dtype if dtype and x.is_floating_point() else x.dtype, copy=True)
                there[id(x)] = nn.Parameter(new, x.requires_grad) if isinstance(x, nn.Parameter) else new
            return there[id(x)]

    room = io.BytesIO()
    try:
        TensorPickler(room, pickle.HIGHEST_PROTOCOL).dump(value)
    except (TypeError, pickle.PicklingError, AttributeError) as e:
        raise InputError(
            f"the network can't be copied to {device} ({e}): use device='cpu' and precision='float64', or stages that hold only "
            "numbers and tensors"
        ) from e
    return TensorUnpickler(io.BytesIO(room.getvalue())).load()  # type: ignore[no-any-return]


class _RepeatableState:
    """State of `repeatable`: the number of active contexts, over all threads together, and torch's settings before
    the first of them.
    """

    lock, asking = threading.Lock(), 0
    before: tuple[bool, bool, bool, str] = (False, False, True, "highest")


@contextlib.contextmanager
def repeatable(at: Place) -> Iterator[None]:
    """Make results on this device repeatable within this context: GPU kernels add in a fixed order, and products of
    float32 don't use TF32.

    Raises:
        InputError: this process has already used cuBLAS with other settings.
    """
    if at.plain:
        yield
        return
    settings: Any = torch.utils.deterministic  # a module with properties
    with _RepeatableState.lock:
        if not _RepeatableState.asking:
            strict, warns = (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            )
            _RepeatableState.before = strict, warns, settings.fill_uninitialized_memory, _matmul_precision()
            torch.use_deterministic_algorithms(not at.on_cpu)
            settings.fill_uninitialized_memory = False  # no memory is read before it is written
            torch.set_float32_matmul_precision("highest")
        _RepeatableState.asking += 1
    try:
        _try_product(at)
        yield
    finally:
        with _RepeatableState.lock:
            _RepeatableState.asking -= 1
            if not _RepeatableState.asking:
                strict, warns, settings.fill_uninitialized_memory, products = _RepeatableState.before
                torch.use_deterministic_algorithms(strict, warn_only=warns)
                torch.set_float32_matmul_precision(products)


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch's newer settings were used, which this function can't read
        return "highest"


def _try_product(at: Place) -> None:
    """Multiply two matrices before the first step, so that an error of cuBLAS is reported in one sentence."""
    one = torch.ones(2, 2, dtype=at.dtype, device=at.device)
    try:
        one @ one
    except RuntimeError as e:
        if "CUBLAS_WORKSPACE_CONFIG" not in str(e):
            raise
        raise InputError(
            f"device={at.name!r}: this process used cuBLAS before sparkdiff was imported, or with a CUBLAS_WORKSPACE_CONFIG of "
            f"its own ({os.environ['CUBLAS_WORKSPACE_CONFIG']!r}), so its results would not repeat: set "
            "CUBLAS_WORKSPACE_CONFIG=:4096:8 before Python starts"
        ) from e


def abandon(device: torch.device, pool: Any) -> None:
    """Tell torch's allocator that a failed recording of a CUDA graph is over, which older versions of torch omit."""
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        if device.type == "cuda" and (tell := getattr(torch._C, name, None)) is not None:
            with contextlib.suppress(RuntimeError):
                tell(device.index, pool)


MEMORY = ("out of memory", "ALLOC_FAILED")


def is_short_of_memory(e: RuntimeError) -> bool:
    """True if an error of torch says that a device has too little memory; CUDA's libraries have no error class for it."""
    return isinstance(e, torch.OutOfMemoryError) or any(text in str(e) for text in MEMORY)


class DeviceCopies:
    """A tensor of settings, such as costs, and its copies on other devices, each made when the device first needs it."""

    def __init__(self, value: Tensor):
        self.value, self.copies = value, {value.device: value}

    def beside(self, x: Tensor) -> Tensor:
        if x.device not in self.copies:
            self.copies[x.device] = self.value.to(x.device, non_blocking=True)
        return self.copies[x.device]
