"""The fake GPU computes as the CPU does, and refuses what a GPU refuses."""

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.support import fake_gpu

GPU, OTHER = (torch.device("fakegpu", i) for i in (0, 1))
cuda = torch.get_device_module("fakegpu")


def learned(device: torch.device) -> list[Tensor]:
    """A step of a small network: its output and gradients, on the CPU."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 2)).to(device), torch.randn(5, 3).to(device)
    out = net(x)
    out.square().sum().backward()
    return [t.detach().cpu() for t in (out, *(p.grad for p in net.parameters() if p.grad is not None))]


def test_it_computes_as_the_cpu_does() -> None:
    assert all(torch.equal(a, b) for a, b in zip(learned(torch.device("cpu")), learned(GPU), strict=True))
    for make in (
        lambda **at: torch.arange(3, **at),
        lambda **at: torch.tensor([1.0, 2.0], **at),
        lambda **at: torch.eye(2, **at),
        lambda **at: torch.full((2,), 3, **at),
        lambda **at: torch.ones(2, 3, dtype=torch.float64, **at).new_zeros(4),
    ):
        assert make(device=OTHER).device == OTHER
        assert torch.equal(make(device=OTHER).cpu(), make())
    assert torch.zeros(2, device=GPU).to(OTHER).device == OTHER


def test_views_share_memory() -> None:
    flat, gradient = torch.arange(8.0, device=GPU), torch.zeros(8, device=GPU)
    p = nn.Parameter(torch.zeros(4, device=GPU))
    p.data, p.grad = flat[4:], gradient[4:]
    flat.add_(1)
    p.square().sum().backward()
    assert gradient.tolist() == [0, 0, 0, 0, 10, 12, 14, 16]
    copied = copy.deepcopy(p)
    p.data[0] = 9
    assert flat.tolist()[4] == 9
    assert isinstance(copied, nn.Parameter)
    assert copied.tolist() == [5, 6, 7, 8]


def test_it_refuses_what_a_gpu_refuses() -> None:
    x = torch.ones(3, device=GPU)
    for wrong in (lambda: x + torch.ones(3), lambda: x + x.to(OTHER), lambda: torch.ones(()).add_(x[0])):
        with pytest.raises(RuntimeError, match="on the same device"):
            wrong()
    assert (x + torch.tensor(2.0)).tolist() == [3, 3, 3]
    with pytest.raises(TypeError, match="to numpy"):
        x.numpy()
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(3, device=GPU, generator=torch.Generator())
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="deterministic"):
            x.cumsum(0)
        assert x.long().cumsum(0).tolist() == [1, 2, 3]
    finally:
        torch.use_deterministic_algorithms(False)


def test_reads_and_copies_are_counted_and_refused() -> None:
    x, rows = torch.ones(3, device=GPU), torch.ones(3)
    reads = (
        x.sum().item,
        x.tolist,
        lambda: bool(x[0]),
        x.nonzero,
        lambda: x[x > 0],
        lambda: torch.linalg.eigh(x.diag()),
    )
    for read in reads:
        before = fake_gpu.reads
        read()
        assert fake_gpu.reads == before + 1
        with fake_gpu.no_reads(), pytest.raises(RuntimeError, match="waits for the device"):
            read()
    before = fake_gpu.copies
    for copied in (x.cpu, lambda: rows.to(GPU), lambda: x.copy_(rows), lambda: rows.copy_(x)):
        copied()
        with fake_gpu.no_reads(), pytest.raises(RuntimeError, match="waits for the device"):
            copied()
    with fake_gpu.no_reads():
        assert rows.pin_memory().is_pinned()
        rows.pin_memory().to(GPU, non_blocking=True)
    assert fake_gpu.copies == before + 5


def test_a_graph_is_recorded_and_replayed() -> None:
    x, w, total = (
        torch.arange(3.0, device=GPU),
        torch.ones(3, device=GPU, requires_grad=True),
        torch.zeros(3, device=GPU),
    )
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        (w * x).square().sum().backward()
        assert w.grad is not None
        total.add_(w.grad)
        doubled = total * 2
    assert total.tolist() == [0, 0, 0]  # captured, not done
    assert doubled.isnan().all()
    graph.replay()
    x.add_(1)
    graph.replay()
    assert w.grad.tolist() == [2, 8, 18]
    assert total.tolist() == [2, 10, 26]
    assert doubled.tolist() == [4, 20, 52]
    for wrong in (x.tolist, x.cpu, lambda: torch.tensor([1.0], device=GPU), x.nonzero):
        with pytest.raises(RuntimeError, match="previous error during capture") as e, cuda.graph(cuda.CUDAGraph()):
            wrong()
        assert "not permitted when stream is capturing" in str(e.value.__context__)
    with pytest.raises(RuntimeError, match="captures_underway"):
        cuda.empty_cache()
    fake_gpu.restart()
    cuda.empty_cache()


def test_memory_is_limited() -> None:
    with fake_gpu.budget(1000):
        x = torch.zeros(100, device=GPU)
        view = x[:50]
        assert cuda.mem_get_info(GPU)[0] == 600
        with pytest.raises(torch.OutOfMemoryError, match="600 are free"):
            x.repeat(2)
        del x
        assert cuda.mem_get_info(GPU)[0] == 600
        del view
        assert cuda.mem_get_info(GPU)[0] == 1000
