"""What only a GPU can show of the kernels: streams, devices, capture, and that nothing waits."""

import pytest
import torch

pytestmark = [
    pytest.mark.ours,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]

N = 257


@pytest.fixture(autouse=True)
def _cpu_is_the_default():
    """Oracles are on the host, whatever device is under test; the others say where they are."""
    with torch.device("cpu"):
        yield


def matrix():
    return torch.randn(N, N, dtype=torch.float64)


def passes(device, m):
    """One result of every kernel, from a matrix on the device."""
    from hesse import _C

    like = {"dtype": m.dtype, "device": device}
    total, product, block, triangle, placed = (
        torch.empty(N, **like),
        torch.empty(N, N, **like),
        torch.empty(N, N, **like),
        torch.zeros(N * (N + 1) // 2, **like),
        torch.zeros(N, **like),
    )
    index = torch.arange(N, device=device) // 2
    _C.combine(False, total, [N, N], [1, 0], 0, m, m, 1.0)
    _C.combine(False, product, [N, N], [N, 1], 0, m, m[:1], 2.0)
    _C.write_sum(block, [([N], [N + 1], 0, m[0], None, 1.0), ([N, 3], [N, 1], 2, None, None, 1.0)])
    _C.mirror_upper(block)
    _C.pack_lower(triangle, m, 0, 0)
    _C.scatter_add(placed, [(N, 0, [(index, 1)])], 0, m[0], None, 1.0)
    return total, product, block, triangle, placed


def check(found, m):
    for ours, host in zip(found, passes("cpu", m), strict=True):
        torch.testing.assert_close(ours.cpu(), host, rtol=1e-12, atol=1e-12)


def test_kernels_run_on_the_current_stream_and_wait_for_nothing():
    m = matrix()
    on_device = m.cuda()
    passes("cuda", on_device)  # loads them
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # what follows on another stream would be early
        late = on_device * 1
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = passes("cuda", late)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    stream.synchronize()
    check(found, m)


def test_kernels_are_captured_and_replayed():
    given = torch.zeros(N, N, dtype=torch.float64, device="cuda")
    passes("cuda", given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = passes("cuda", given)
    for _ in range(2):
        m = matrix()
        given.copy_(m)
        graph.replay()
        check(found, m)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_kernels_run_where_their_tensors_are():
    m = matrix()
    with torch.cuda.device(0):
        check(passes("cuda:1", m.to("cuda:1")), m)
        assert torch.cuda.current_device() == 0
        check(passes("cuda:0", m.to("cuda:0")), m)
