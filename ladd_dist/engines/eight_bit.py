"""AdamW with moments in blocks of 8 bits (torchao), over many flat tensors as if they were one.

torchao updates one parameter after the other, each by a program that is compiled for its length: of SD3.5 Large on an
H200 a start took over a minute for the programs, and an update 0.8 s of the host for 0.15 s of work. Here the tensors
lie end to end in chunks of one length, so that one program serves a network. Codes and scales are the same as
torchao's of each tensor by itself: lengths are multiples of a block, so that no block holds parts of two tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ladd_dist.config import MomentKind, OptimizerConfig

BLOCK, SMALLEST = 256, 4096
"""torchao quantizes tensors of at least so many elements, in blocks of this size."""
_CHUNK = 2**26
"""Elements that are updated at once, at most; weights and gradients are copied for it, in fp32."""


def quantizable(numel: int) -> bool:
    """Whether moments of so many elements are held in 8 bits."""
    return numel >= SMALLEST and numel % BLOCK == 0


def chunks(numel: int) -> tuple[int, int]:
    """How many there are of so many elements, and the length of each, at which codes and scales stay aligned."""
    count = -(-numel // _CHUNK)
    return count, -(-numel // (count * 4 * BLOCK)) * 4 * BLOCK


@dataclass(frozen=True)
class _Piece:
    """Elements ``[first, end)`` of a tensor."""

    name: str
    first: int
    end: int

    def of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return tensors[self.name][self.first : self.end]


class EightBitAdamW:
    """Of flat fp32 tensors, in place.

    Args:
        weights: every one `quantizable`.
    """

    def __init__(self, weights: Mapping[str, Tensor], config: OptimizerConfig) -> None:
        from torchao.optim.subclass_8bit import OptimState8bit

        self._weights, self._config, self.updates = dict(weights), config, 0
        count, self._length = chunks(sum(w.numel() for w in weights.values()))
        device = next(iter(weights.values())).device
        # torchao's code table of the first moment has a sign, that of the second needs none.
        self._moments = {
            kind: OptimState8bit.zeros((count * self._length,), kind == "exp_avg", BLOCK, device, torch.float32)
            for kind in config.moments
        }
        self._offsets, self.pieces = self._laid_out(count)

    def _laid_out(self, count: int) -> tuple[dict[str, int], list[list[_Piece]]]:
        """Where each tensor begins, and what each chunk is made of."""
        offsets, pieces, at = dict[str, int](), [list[_Piece]() for _ in range(count)], 0
        for name, weight in self._weights.items():
            offsets[name], first = at, 0
            while first < weight.numel():
                end = min(weight.numel(), first + self._length - at % self._length)
                pieces[at // self._length].append(_Piece(name, first, end))
                at, first = at + end - first, end
        return offsets, pieces

    def step(self, gradients: Mapping[str, Tensor], lr: float, clip: Tensor, finite: Tensor) -> None:
        """One update with ``clip`` times the gradients; none if ``finite`` is false. Both are 0-d.

        The host waits for ``finite``: torchao takes no such flag.
        """
        from torchao.optim import AdamW8bit

        if not finite:
            return
        own, device = self._config, finite.device
        chunk = nn.Parameter(torch.zeros(self._length, device=device), requires_grad=False)
        chunk.grad = torch.zeros_like(chunk)
        b1, b2 = own.betas
        optimizer = AdamW8bit([chunk], lr, (b1, b2), own.eps, own.weight_decay, block_size=BLOCK)
        for index, pieces in enumerate(self.pieces):
            held = sum(piece.end - piece.first for piece in pieces)
            weights = [piece.of(self._weights) for piece in pieces]
            torch.cat(weights, out=chunk[:held])
            torch.cat([piece.of(gradients) for piece in pieces], out=chunk.grad[:held])
            chunk.grad.mul_(clip)
            first = index * self._length
            # Without a first moment to keep, the gradient is the first moment.
            optimizer.state[chunk] = {"step": torch.tensor(float(self.updates)), "exp_avg": chunk.grad} | {
                kind: self._of(kind, first, first + self._length) for kind in self._moments
            }
            optimizer.step()
            torch._foreach_copy_(weights, chunk[:held].split([weight.numel() for weight in weights]))
        self.updates += 1

    def _of(self, kind: MomentKind, first: int, end: int) -> Tensor:
        from torchao.optim.subclass_8bit import OptimState8bit

        moment = self._moments[kind]
        scale = moment.scale[first // BLOCK : end // BLOCK]
        return OptimState8bit(moment.codes[first:end], scale, moment.qmap, moment.signed, moment.dtype)

    def moment(self, kind: MomentKind) -> dict[str, Tensor]:
        """Live, by name of tensor; nothing if it is not kept."""
        if kind not in self._moments:
            return {}
        return {n: self._of(kind, first, first + self._weights[n].numel()) for n, first in self._offsets.items()}
