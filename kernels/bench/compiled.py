"""torch.compile for providers: one compilation per case, an error where it falls back to eager."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels.bench.case import Run


def compile_whole(function: Callable[..., Any], backend: str = "inductor") -> Callable[..., Any]:
    """Compile for the shapes to come, or fail: past its limit of versions torch.compile would quietly run eager.

    What was compiled before is compiled anew when it runs next. Backward passes are timed again and again through one
    graph, which has to keep its buffers.
    """
    torch._dynamo.reset()
    torch._functorch.config.donated_buffer = False
    return torch.compile(function, fullgraph=True, dynamic=False, backend=backend)


def graphed(run: Run) -> Run:
    """``run`` as a CUDA graph: its launches without their gaps."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return outputs

    return replay
