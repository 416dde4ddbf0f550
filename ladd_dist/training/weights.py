"""How far the student's weights move, and how far their average is from them: for the record, at every row.

Measured on those that `engines.ranges.watched` names.
"""

import torch
from torch import Tensor

from ladd_dist.distributed.world import World
from ladd_dist.engines.base import Engine, Shard
from ladd_dist.engines.ema import Ema
from ladd_dist.engines.ranges import watched
from ladd_dist.training.tracking import Row


class WeightChanges:
    """Holds the weights that it looks at as they were when it last looked; `restart` it where they were replaced."""

    def __init__(self, student: Engine, ema: Ema, world: World) -> None:
        self._student, self._ema, self._world = student, ema, world
        self.restart()

    def restart(self) -> None:
        """Measure from here."""
        self._before, self._average = _chosen(self._student.shards()), _chosen(self._ema.shards())

    def row(self) -> Row:
        """What to record, the same on every rank.

        Returns:
            ``update_size``: ``|w - w_before| / |w|``, since the last call.
            ``ema_distance``: ``|ema - w| / |w|``.
            ``ema_follows``: the part of the way from where it was to where the weights are that the average has gone;
            negative if it went away from them. Absent where there was no way to go.
        """
        now, average = _chosen(self._student.shards()), _chosen(self._ema.shards())
        moved, apart = now - self._before, now - average.to(now.device)
        way, gone = now - self._average.to(now.device), (average - self._average).to(now.device)
        self._before, self._average = now, average
        products = [(moved, moved), (apart, apart), (now, now), (gone, way), (way, way)]
        # An engine may hold the weights in host memory, where ranks on GPUs have no collective.
        sums = torch.stack([(a * b).sum() for a, b in products]).to(self._world.device)
        self._world.mean_([sums])
        if not sums.isfinite().all() or not sums[2]:
            return {}
        sizes = (sums[:2] / sums[2]).sqrt().tolist()
        follows = {"ema_follows": float(sums[3] / sums[4])} if sums[4] else {}
        return {"update_size": sizes[0], "ema_distance": sizes[1], **follows}


def _chosen(shards: dict[str, Shard]) -> Tensor:
    """A copy of the watched elements of every tensor."""
    return torch.cat([_of(shard).float() for shard in shards.values()])


def _of(shard: Shard) -> Tensor:
    chosen = watched(shard.offset, shard.local.numel())
    return shard.local[chosen.start :: chosen.step]
