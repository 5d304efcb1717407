"""A function recorded as one CUDA graph, replayed for new values of its inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

WARM_UPS = 3


def capture(function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Callable[..., Any]:
    """Records `function(*inputs)`; what comes back copies inputs in, replays and copies out.

    Args:
        function: of CUDA tensors, without a host read of their values.
        inputs: an example; later ones have its shapes and dtypes.

    Returns:
        A function of the inputs whose results are tensors of their own, as an eager call's are.
    """
    static = tuple(x.detach().clone() for x in inputs)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            function(*static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Threads of other libraries in this process may go on with what a capture forbids.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = function(*static)

    def replay(*values: Tensor) -> Any:
        for own, value in zip(static, values, strict=True):
            own.copy_(value)
        graph.replay()
        return tree_map_only(Tensor, torch.clone, result)

    return replay
