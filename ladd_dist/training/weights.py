"""How far the student's weights move, and how far their average is from them: for the record, at every row.

Measured on one weight in 64, always the same ones whatever the engine and the number of ranks: a copy of all weights
would cost as much memory as the average does.
"""

import torch
from torch import Tensor

from ladd_dist.distributed.world import World
from ladd_dist.engines.base import Engine, Shard
from ladd_dist.engines.ema import Ema
from ladd_dist.training.tracking import Row

_STRIDE = 64


class WeightChanges:
    """Holds the weights that it looks at as they were when it last looked; `restart` it where they were replaced."""

    def __init__(self, student: Engine, ema: Ema, world: World) -> None:
        self._student, self._ema, self._world = student, ema, world
        self.restart()

    def restart(self) -> None:
        """Measure from here."""
        self._before = _chosen(self._student.shards())

    def row(self) -> Row:
        """What to record, the same on every rank.

        Returns:
            ``update_size``: ``|w - w_before| / |w|``, since the last call.
            ``ema_distance``: ``|ema - w| / |w|``.
        """
        now, average = _chosen(self._student.shards()), _chosen(self._ema.shards())
        sizes = [now - self._before, average.to(now.device) - now, now]
        self._before = now
        squares = torch.stack([size.square().sum() for size in sizes])
        self._world.mean_([squares])
        if not squares.isfinite().all() or not squares[2]:
            return {}
        moved, apart, weights = squares.sqrt().tolist()
        return {"update_size": moved / weights, "ema_distance": apart / weights}


def _chosen(shards: dict[str, Shard]) -> Tensor:
    """A copy of one in `_STRIDE` elements of every whole tensor, counted from its begin."""
    return torch.cat([shard.local[-shard.offset % _STRIDE :: _STRIDE].float() for shard in shards.values()])
