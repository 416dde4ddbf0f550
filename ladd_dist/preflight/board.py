"""Measurements to rank 0 and its verdict to all: over the job's store, since links are what is in question."""

from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch.distributed as dist
from pydantic import TypeAdapter

from ladd_dist.distributed.world import World
from ladd_dist.errors import LaddError, PeerLost

T = TypeVar("T")

PATIENCE = timedelta(seconds=300)
"""How long a rank may take for a measurement that has no limit of its own, such as that of its files."""
_calls = count()


class Board:
    """Where ranks leave what they have measured. Use it on every rank alike."""

    def __init__(self, world: World) -> None:
        self._world = world
        # A connection of its own: one that waits serves nobody else.
        store = world.store.clone() if world.store else dist.HashStore()
        self._store = dist.PrefixStore(f"preflight {next(_calls)}", store)

    def collect(self, name: str, mine: T, kind: Any) -> list[T]:
        """Every rank's measurement in rank order, on rank 0; nothing on the others.

        Raises:
            PeerLost: on rank 0, naming a rank from which none comes; the others hear of it from the watchdog.
            LaddError: on rank 0, if one is none.
        """
        adapter = TypeAdapter(kind)
        keys = [f"{name}/{rank}" for rank in range(self._world.size)]
        self._store.set(keys[self._world.rank], adapter.dump_json(mine).decode())
        if not self._world.is_main:
            return []
        try:
            self._store.wait(keys, PATIENCE)
        except dist.DistError:
            late = [key for key in keys if not self._store.check([key])]
            raise PeerLost(f"no word of {late[0]} in {PATIENCE.seconds} s: look at that rank's node") from None
        texts = self._store.multi_get(keys)
        try:
            return [adapter.validate_json(text) for text in texts]
        except ValueError:
            raise LaddError("not all ranks run the same code: give every node the same, best from one disk") from None

    def tell(self, name: str, value: T, kind: Any) -> T:
        """Rank 0's value, on every rank."""
        adapter = TypeAdapter(kind)
        if self._world.is_main:
            self._store.set(name, adapter.dump_json(value).decode())
        self._store.wait([name], 2 * PATIENCE)
        return adapter.validate_json(self._store.get(name))
