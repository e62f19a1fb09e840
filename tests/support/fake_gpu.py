"""A GPU that isn't there: tensors of the device `fakegpu`, computed by the CPU's kernels, for tests of what needs a GPU.

It refuses what a GPU refuses, and what it does but silently: tensors of two devices in one operation, `numpy()`, operations
without a deterministic kernel where one is asked for, and more memory than there is. It counts what waits for the device
(`reads` and `copies`), which `no_reads()` refuses. What `torch.get_device_module` returns has the names of `torch.cuda`, with
graphs that are really recorded and replayed. Importing this registers the device, once per process. There are two of them, but
torch's autograd goes backward on the first one alone.
"""

import contextlib
import gc
import itertools
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME, DEVICES, MEMORY = "fakegpu", 2, 16 << 30
aten = torch.ops.aten


class _Now:
    """What this process has done on the device, and what it may do."""

    def __init__(self) -> None:
        self.reads = self.copies = self.bytes = self.device = 0
        self.limit: int = MEMORY
        self.refuses = self.broken = False
        self.capturing: CUDAGraph | None = None


class _Memory:
    """The bytes of one storage, which all its views share."""

    def __init__(self, size: int):
        if _now.bytes + size > _now.limit:
            free = max(0, _now.limit - _now.bytes)
            raise torch.OutOfMemoryError(
                f"{NAME} out of memory. Tried to allocate {size} bytes, of which {free} are free"
            )
        _now.bytes += size
        weakref.finalize(self, _free, size)


def _free(size: int) -> None:
    _now.bytes -= size


_memory: "weakref.WeakValueDictionary[int, _Memory]" = weakref.WeakValueDictionary()


def _memory_of(elem: Tensor) -> _Memory:
    storage = elem.untyped_storage()
    if (known := _memory.get(storage._cdata)) is None:
        known = _memory[storage._cdata] = _Memory(storage.nbytes())
        if _now.capturing is not None:
            _now.capturing.made[storage._cdata] = elem
    return known


class FakeTensor(Tensor):
    """A tensor of the device; `elem` on the CPU holds its numbers. Views share the memory of what they view."""

    elem: Tensor
    memory: _Memory
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def of(elem: Tensor, device: Any) -> "FakeTensor":
        at = torch.device(device)
        memory = _memory_of(elem)
        new = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            FakeTensor,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            layout=elem.layout,
            device=torch.device(NAME, _now.device if at.index is None else at.index),
        )
        new.elem, new.memory = elem, memory
        return new

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self.elem!r} on {self.device}"

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return Tensor.data.__get__(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, new: "FakeTensor") -> None:
        Tensor.data.__set__(self, new)  # type: ignore[attr-defined]
        self.elem, self.memory = new.elem, new.memory

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            new = self.detach().clone().requires_grad_(self.requires_grad)
            new._is_param = getattr(self, "_is_param", False)  # type: ignore[attr-defined]
            memo[id(self)] = new
        return memo[id(self)]  # type: ignore[no-any-return]

    def __setitem__(self, index: Any, value: Any) -> None:
        """A number goes into single entries as a tensor of the CPU, which CUDA copies and waits for; a slice is filled."""
        parts = index if isinstance(index, tuple) else (index,)
        if not isinstance(value, Tensor) and (any(isinstance(i, Tensor) for i in parts) or self[index].ndim == 0):
            _copy("x[i] = a number", True)
        super().__setitem__(index, value)

    def numpy(self, **_: Any) -> Any:  # type: ignore[override]
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy it first")

    def tolist(self) -> Any:
        _read("tolist")
        return self.elem.tolist()

    def data_ptr(self) -> int:
        return self.elem.data_ptr()

    def untyped_storage(self) -> Any:
        return self.elem.untyped_storage()

    def is_pinned(self, device: Any = None) -> bool:
        return False

    def record_stream(self, stream: Any) -> None:
        pass


# Operations -----------------------------------------------------------------------------------------------------------


def _waits(what: str) -> None:
    if _now.capturing is not None:
        _now.capturing.spoiled = True
        raise RuntimeError(f"{NAME} error: operation not permitted when stream is capturing: {what}")
    if _now.refuses:
        raise RuntimeError(f"{what} waits for the device, where nothing may")


def _read(what: str) -> None:
    _waits(what)
    _now.reads += 1


def _copy(what: str, waits: bool) -> None:
    if waits or _now.capturing is not None:
        _waits(what)
    _now.copies += 1


def _masked(indices: Sequence[Tensor | None]) -> bool:
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)


READS: dict[str, Callable[..., bool]] = {
    **dict.fromkeys(
        (
            "_local_scalar_dense",
            "equal",
            "nonzero",
            "masked_select",
            "_unique",
            "_unique2",
            "unique_dim",
            "unique_consecutive",
            "bincount",
            "_linalg_check_errors",
            "_linalg_eigh",
            "_linalg_svd",
        ),
        lambda *a, **k: True,
    ),
    "repeat_interleave": lambda *a, output_size=None, **k: output_size is None,
    **dict.fromkeys(("index", "index_put", "index_put_", "_index_put_impl_"), lambda x, i, *a, **k: _masked(i)),
    **dict.fromkeys(
        ("scatter", "scatter_", "scatter_add", "scatter_add_"),
        lambda x, d, i, s, *a, **k: (
            x.ndim > 1 and isinstance(s, Tensor) and torch.are_deterministic_algorithms_enabled()
        ),
    ),  # deterministic kernels of some versions copy strides to the device
}
"""Operations whose result, or its shape, the CPU has to know, so that it waits for the device."""

UNREPEATABLE: dict[str, Callable[..., bool]] = {
    "cumsum": lambda x, *a, **k: x.is_floating_point(),
    "bincount": lambda x, weights=None, *a, **k: weights is not None,
    **dict.fromkeys(("median", "nanmedian"), lambda x, *a, **k: bool(a)),
    **dict.fromkeys(("put_", "put", "histc", "kthvalue", "nll_loss2d_forward"), lambda *a, **k: True),
    **dict.fromkeys(("scatter_reduce", "scatter_reduce_"), lambda x, d, i, s, reduce, **k: reduce == "prod"),
    "_embedding_bag_dense_backward": lambda *a, **k: a[8] == 2,
}
"""Operations for which CUDA has no deterministic kernel, as the documentation of use_deterministic_algorithms lists them."""

AT_ONCE = {aten._conj.default: aten._conj_physical.default, aten._neg_view.default: aten.neg.default}
"""In place of views that the CPU computes later, by a mark that a tensor in a tensor does not show."""

TAKE_NUMBERS = {"index_put", "index_put_", "_index_put_impl_", "masked_fill", "masked_fill_", "fill", "fill_", "where"}
"""Operations that take a CPU tensor of no dimension, beside those that go entry by entry."""


def _check(func: Any, fakes: list[FakeTensor], plain: list[Tensor], written: list[Tensor]) -> None:
    name = func._schema.name.removeprefix("aten::")
    numbers = torch.Tag.pointwise in func.tags or name in TAKE_NUMBERS or name.startswith("_foreach")
    wrong = [x for x in plain if x.ndim or not numbers or any(x is w for w in written)]
    found = {x.device for x in [*fakes, *wrong]}
    if len(found) > 1:
        two = " and ".join(sorted(map(str, found)))
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {two}: {func}"
        )


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    func = AT_ONCE.get(func, func)
    name = func._schema.name.removeprefix("aten::")
    leaves = pytree.tree_leaves((args, kwargs))
    fakes = [x for x in leaves if isinstance(x, FakeTensor)]
    plain = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, FakeTensor)]
    given = [*args, *([None] * (len(func._schema.arguments) - len(args)))]
    places = zip(func._schema.arguments, given, strict=True)
    written = pytree.tree_leaves([kwargs.get(a.name, x) for a, x in places if a.alias_info and a.alias_info.is_write])
    at = torch.device(kwargs["device"]) if kwargs.get("device") is not None else fakes[0].device
    for g in leaves:
        if isinstance(g, torch.Generator) and g.device.type != NAME:
            raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{g.device.type}'")
    if name == "copy_":
        to, source = args[:2]
        if to.device != source.device:
            later = bool(args[2] if len(args) > 2 else kwargs.get("non_blocking", False)) and to.device.type == NAME
            _copy(f"a copy from {source.device} to {to.device}", not later)
    elif name == "_to_copy":
        if at != fakes[0].device:
            _copy(f"a copy from {fakes[0].device} to {at}", True)
    else:
        _check(func, fakes, plain, written)
    if name.startswith("_fused_adam"):
        rate, steps = kwargs["lr"], args[5]
        if any(isinstance(x, Tensor) and x.dtype != torch.float32 for x in [rate, *steps]):
            raise RuntimeError("expected scalar type Float but found Double")
    if name in READS and READS[name](*args, **kwargs):
        _read(str(func))
    strict = torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    if strict and name in UNREPEATABLE and UNREPEATABLE[name](*args, **kwargs):
        raise RuntimeError(
            f"{name} on {NAME} does not have a deterministic implementation, but you set "
            "'torch.use_deterministic_algorithms(True)'"
        )
    a, k = pytree.tree_map_only(FakeTensor, lambda x: x.elem, (args, kwargs))
    k.pop("pin_memory", None)
    if kwargs.get("device") is not None:
        k["device"] = torch.device("cpu")
    graph = _now.capturing
    if graph is not None:
        kept = graph.kept(a, k, written, fakes)
    out = func(*a, **k)
    if graph is not None and torch.Tag.inplace_view not in func.tags:
        seen = pytree.tree_map_only(Tensor, Tensor.detach, out)
        graph.calls.append((func, *kept, seen, {x.elem.untyped_storage()._cdata for x in fakes}))
    if at.type != NAME or (written and not any(isinstance(x, FakeTensor) for x in written)):
        return out  # on the CPU
    same = {id(x.elem): x for x in fakes}
    for x in written:
        if isinstance(x, FakeTensor) and (x.shape != x.elem.shape or x.stride() != x.elem.stride()):
            if torch.Tag.inplace_view not in func.tags:  # torch makes room in an out= argument
                _memory.pop(x.elem.untyped_storage()._cdata, None)
            x.data = FakeTensor.of(x.elem, x.device)
    return pytree.tree_map_only(Tensor, lambda x: same[id(x)] if id(x) in same else FakeTensor.of(x, at), out)


def _uninitialized(x: Tensor) -> Tensor:
    return x.fill_(torch.nan) if x.is_floating_point() else x


def _empty(size: Any, *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    return FakeTensor.of(_uninitialized(torch.empty(size, dtype=dtype, device="cpu")), device)


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    return FakeTensor.of(_uninitialized(torch.empty_strided(size, stride, dtype=dtype, device="cpu")), device)


def _copy_from(source: Tensor, to: Tensor, non_blocking: bool = False) -> Tensor:
    """What torch calls where it makes a tensor of Python's numbers."""
    return _run(aten.copy_.default, (to, source, non_blocking), {})  # type: ignore[no-any-return]


def _pin(x: Tensor, device: Any = None) -> Tensor:
    new = x.clone()
    _pinned.add(new.untyped_storage())
    return new


# Graphs, streams, memory ----------------------------------------------------------------------------------------------


class CUDAGraph:
    """Operations in their order, which `replay` does again on the same memory."""

    def __init__(self, keep_graph: bool = False) -> None:
        self.reset()

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        if _now.capturing is not None:
            raise RuntimeError(f"{NAME} error: a capture inside of another")
        self.reset()
        _now.capturing = self

    def capture_end(self) -> None:
        _now.capturing = None
        self.captured()
        if self.spoiled:  # as in torch before 2.12, whose allocator believes in the capture from then on
            _now.broken = True
            raise RuntimeError(f"{NAME} error: operation failed due to a previous error during capture")

    def reset(self) -> None:
        self.spoiled = False
        self.calls: list[tuple[Any, Any, Any, Any, set[int]]] = []
        self.made: dict[int, Tensor] = {}  # storages of the capture, which it keeps alive
        self.before: dict[int, tuple[Any, Any]] = {}  # storages that it has written to, and what was in them

    def kept(self, a: Any, k: Any, written: list[Any], fakes: list[FakeTensor]) -> Any:
        """The arguments as they are now, with their shapes and numbers of the CPU; remembers what is about to be written over."""
        for x in written:
            storage = x.elem.untyped_storage()
            if storage._cdata not in self.made and storage._cdata not in self.before:
                self.before[storage._cdata] = storage, storage.clone()
        of_gpu = {id(x.elem) for x in fakes}
        return pytree.tree_map_only(Tensor, lambda x: x.detach() if id(x) in of_gpu else x.clone(), (a, k))

    def captured(self) -> None:
        """What a GPU leaves behind: nothing is done, and nothing of what the graph will write can be read."""
        for storage, old in self.before.values():
            storage.copy_(old)
        for made in self.made.values():
            _uninitialized(torch.empty(0, dtype=made.dtype).set_(made.untyped_storage()))  # type: ignore[call-overload]
        self.before.clear()

    def pool(self) -> Any:
        return (0, id(self))

    def replay(self) -> None:
        for func, a, k, out, inputs in self.calls:
            if not func._schema.is_mutable and _only_views(out, inputs):
                continue
            new = func(*a, **k)
            for old, x in zip(pytree.tree_leaves(out), pytree.tree_leaves(new), strict=True):
                if isinstance(old, Tensor) and old is not x and old.untyped_storage()._cdata not in inputs:
                    old.copy_(x)


def _only_views(out: Any, inputs: set[int]) -> bool:
    tensors = [x for x in pytree.tree_leaves(out) if isinstance(x, Tensor)]
    return bool(tensors) and all(x.untyped_storage()._cdata in inputs for x in tensors)


class graph(contextlib.AbstractContextManager[None]):
    """As torch.cuda.graph: what is done inside is recorded, and not done."""

    def __init__(self, cuda_graph: CUDAGraph, pool: Any = None, stream: Any = None, capture_error_mode: str = "global"):
        self.graph = cuda_graph

    def __enter__(self) -> None:
        self.graph.capture_begin()

    def __exit__(self, *error: Any) -> None:
        self.graph.capture_end()


class Stream:
    """Everything is done at once, in the order in which it is asked for."""

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        self.device = torch.device(NAME, _index(device))

    def wait_event(self, event: "Event") -> None: ...

    def wait_stream(self, stream: "Stream") -> None: ...

    def record_event(self, event: "Event | None" = None) -> "Event":
        return event or Event()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        _waits("Stream.synchronize")


class Event:
    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None: ...

    def record(self, stream: Stream | None = None) -> None: ...

    def wait(self, stream: Stream | None = None) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: "Event") -> float:
        return 1.0

    def synchronize(self) -> None:
        _waits("Event.synchronize")


def _index(device: Any) -> int:
    if device is None:
        return _now.device
    number = device if isinstance(device, int) else torch.device(device).index
    return _now.device if number is None else number


@contextlib.contextmanager
def _device(at: Any) -> Iterator[None]:
    before, _now.device = _now.device, _index(at)
    try:
        yield
    finally:
        _now.device = before


@contextlib.contextmanager
def _stream(stream: Stream | None) -> Iterator[None]:
    yield


def _set_device(device: Any) -> None:
    _now.device = _index(device)


def _set_sync_debug_mode(mode: int | str) -> None:
    _now.refuses = mode in (2, "error")


def restart() -> None:
    """As in a new process: a recording that failed is forgotten."""
    _now.broken = False


def _empty_cache() -> None:
    if _now.broken:
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")


@contextlib.contextmanager
def no_reads() -> Iterator[None]:
    """Inside, what waits for the device raises RuntimeError: reads, shapes that depend on data, and copies that wait."""
    before, _now.refuses = _now.refuses, True
    try:
        yield
    finally:
        _now.refuses = before


@contextlib.contextmanager
def budget(size: int) -> Iterator[None]:
    """Inside, the device has this many bytes beside what lies there already."""
    gc.collect()
    before, _now.limit = _now.limit, _now.bytes + size
    try:
        yield
    finally:
        _now.limit = before


def __getattr__(name: str) -> int:
    """`reads` and `copies`: how often this process has waited for a value, and how many copies it has asked for."""
    if name in ("reads", "copies"):
        return int(getattr(_now, name))
    raise AttributeError(name)


_now = _Now()
_pools = itertools.count(1)
_pinned: "weakref.WeakSet[Any]" = weakref.WeakSet()
backend = types.ModuleType(f"torch.{NAME}")
vars(backend).update(
    is_available=lambda: True,
    is_initialized=lambda: True,
    init=lambda: None,
    _is_in_bad_fork=lambda: False,
    manual_seed=lambda seed: None,
    manual_seed_all=lambda seed: None,
    device_count=lambda: DEVICES,
    current_device=lambda: _now.device,
    set_device=_set_device,
    device=_device,
    empty_cache=_empty_cache,
    set_sync_debug_mode=_set_sync_debug_mode,
    get_sync_debug_mode=lambda: 2 if _now.refuses else 0,
    get_device_name=lambda device=None: "a GPU that isn't there",
    synchronize=lambda device=None: _waits("synchronize"),
    mem_get_info=lambda device=None: (max(0, _now.limit - _now.bytes), _now.limit),
    memory_allocated=lambda device=None: _now.bytes,
    Stream=Stream,
    Event=Event,
    stream=_stream,
    current_stream=Stream,
    default_stream=Stream,
    graph_pool_handle=lambda: (next(_pools), 0),
    is_current_stream_capturing=lambda: _now.capturing is not None,
    CUDAGraph=CUDAGraph,
    graph=graph,
    OutOfMemoryError=torch.OutOfMemoryError,
)
_setup_privateuseone_for_python_backend(NAME, backend_module=backend)
_library = torch.library.Library("aten", "IMPL")
_library.impl("empty.memory_format", _empty, "PrivateUse1")
_library.impl("empty_strided", _empty_strided, "PrivateUse1")
_library.impl("_copy_from", _copy_from, "PrivateUse1")
_library.impl("_pin_memory", _pin, "CPU")
_library.impl("is_pinned", lambda x, device=None: x.untyped_storage() in _pinned, "CPU")
