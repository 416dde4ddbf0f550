"""Weights that one process casts block by block: the numbers of weights cast one by one, by fewer operators."""

from typing import Any

import pytest
import torch
from counting import Operators
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ladd_dist.engines.casting import cast_in_passes
from ladd_dist.engines.compiled import compile_blocks
from ladd_dist.planning.counting import Counter

WIDTH = 256
BLOCKS, UNITS = 3, 4
"""A unit is a block, or what is outside of them."""


class Block(nn.Module):
    """With a weight of two names, a frozen one, and one that not every pass uses."""

    def __init__(self) -> None:
        super().__init__()
        self.there, self.back = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.back.bias = self.there.bias
        self.frozen = nn.Parameter(torch.rand(WIDTH).bfloat16(), requires_grad=False)
        self.gain = nn.Parameter(torch.rand(WIDTH))

    def forward(self, x: Tensor, with_gain: bool = True) -> Tensor:
        inner = torch.tanh(self.there(x)) * self.frozen
        return x + self.back(inner * self.gain if with_gain else inner)


class Net(nn.Module):
    def __init__(self, recomputed: bool = False) -> None:
        super().__init__()
        self.first, self.blocks = nn.Linear(WIDTH, WIDTH), nn.ModuleList(Block() for _ in range(BLOCKS))
        self.recomputed = recomputed

    def forward(self, x: Tensor, with_gain: bool = True) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = checkpoint(block, x, with_gain, use_reentrant=False) if self.recomputed else block(x, with_gain)
        return x

    def wrap_points(self) -> list[nn.Module]:
        return list(self.blocks)


def make(recomputed: bool = False, dtype: torch.dtype = torch.bfloat16) -> Net:
    torch.manual_seed(0)
    net = Net(recomputed)
    cast_in_passes(net, dtype)
    return net


def batch(index: int = 0) -> Tensor:
    return torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(index)).bfloat16()


def gradients(net: Net) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in net.named_parameters()}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("recomputed", [False, True])
def test_gradients_are_those_of_weights_that_are_cast_one_by_one(recomputed: bool, compiled: bool) -> None:
    torch.manual_seed(0)
    plain, net = Net(), make(recomputed)
    if compiled:
        net = Net(recomputed)
        net.load_state_dict(plain.state_dict())
        compile_blocks(net.wrap_points(), backend="aot_eager")
        cast_in_passes(net, torch.bfloat16)
    names = {id(p): name for name, p in plain.named_parameters()}
    for index in range(3):  # micro-batches
        both = {name: p.bfloat16() for name, p in plain.named_parameters()}
        copies = {name: both[names[id(p)]] for name, p in plain.named_parameters(remove_duplicate=False)}
        expected = torch.func.functional_call(plain, copies, (batch(index), index > 0))
        out = net(batch(index), index > 0)
        assert torch.equal(out, expected) and out.dtype == torch.bfloat16
        out.float().square().sum().backward()
        expected.float().square().sum().backward()
        found, exact = gradients(net), gradients(plain)
        assert [name for name, gradient in found.items() if gradient is None] == [
            name for name, gradient in exact.items() if gradient is None
        ]
        for name, gradient in found.items():
            assert gradient is None or torch.equal(gradient, exact[name]), (index, name)  # type: ignore[arg-type]
        assert sum(gradient is None for gradient in found.values()) == (2 if index == 0 else 1) * BLOCKS


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_unit_takes_one_cast_and_one_sum(recomputed: bool) -> None:
    net, x = make(recomputed), batch()
    for index in range(2):
        with Operators() as forward:
            loss = net(x).sum()
        with Operators() as backward:
            loss.backward()
        again = BLOCKS if recomputed else 0
        assert forward.calls["aten::_foreach_copy_"] == UNITS
        assert backward.calls["aten::_foreach_copy_"] == UNITS + again
        assert backward.calls["aten::_foreach_add_"] == UNITS * index
        for one_by_one in ("aten::_to_copy", "aten::copy_", "aten::add_"):
            assert (forward.calls + backward.calls)[one_by_one] == 0


def test_weights_are_back_after_a_pass_and_after_an_error() -> None:
    net = make()
    own = dict(net.named_parameters(remove_duplicate=False))
    net(batch())
    with pytest.raises(RuntimeError, match="same dtype"):
        net(batch().float())
    net.blocks[1].back.weight.data = torch.empty(1, 1)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        net(batch())
    now = dict(net.named_parameters(remove_duplicate=False))
    assert now.keys() == own.keys() and all(now[name] is weight for name, weight in own.items())


@pytest.mark.parametrize(
    ("grad", "recomputed", "blocks"), [(False, False, 0), (True, False, BLOCKS), (True, True, 0)]
)
def test_copies_of_a_block_go_with_it_unless_a_graph_needs_them(grad: bool, recomputed: bool, blocks: int) -> None:
    net, x = make(recomputed), batch().requires_grad_()
    weight = 2 * WIDTH**2
    with torch.set_grad_enabled(grad), Counter() as counter:
        out = net(x)
    kept = grad + 2 * blocks  # of the layer outside of blocks, and two of each
    assert out.nbytes < weight / 50, "activations and biases are less than the half of one"
    assert kept == round(counter.alive / weight)
    assert counter.peak < (1 + 2 * max(1, blocks) + 0.5) * weight


def test_weights_in_the_compute_precision_are_not_copied() -> None:
    with Operators() as seen:
        make(dtype=torch.float32)(batch().float())
    assert seen.calls["aten::_foreach_copy_"] == 0


def test_the_compiler_takes_the_sizes_of_copies_for_a_blocks_own() -> None:
    """Those of inputs it leaves open."""
    graphs: list[list[torch.Size]] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        inputs = [node.meta["example_value"] for node in graph.graph.find_nodes(op="placeholder")]
        graphs.append([each.shape for each in inputs if isinstance(each, Tensor)])
        return graph

    torch.manual_seed(0)
    net = Net()
    compile_blocks(net.wrap_points(), backend=backend)
    cast_in_passes(net, torch.bfloat16)
    for rows in (5, 7):
        net(torch.randn(rows, WIDTH).bfloat16())
    (shapes,) = graphs
    assert sum(any(isinstance(size, torch.SymInt) for size in shape) for shape in shapes) == 1
