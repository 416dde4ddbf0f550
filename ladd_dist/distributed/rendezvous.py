"""The part of a store that belongs to this start of the ranks, and to no earlier one."""

import time
from datetime import timedelta
from uuid import uuid4

import torch.distributed as dist

from ladd_dist.errors import PeerLost

_POLL = 0.05
_ALL = "all are here"


def fresh(store: dist.Store, rank: int, size: int, timeout: timedelta) -> dist.Store:
    """A prefix of ``store`` that all ranks of this start share and nobody else has written to; once all are there.

    torchrun keeps its store over ``--max-restarts``: a restarted rank could read what a dead one has left there, its
    address or a diagnosis, and take it for its partner's (https://github.com/pytorch/pytorch/issues/135712).
    torchrun's count of restarts cannot tell starts apart, since each node counts its own. So every rank asks under a
    random name, and rank 0 answers each with the random prefix that it has chosen for this start.

    Raises:
        PeerLost: if a rank does not ask in time, or rank 0 is gone.
    """
    try:
        return _agreed(store, rank, size, timeout)
    except dist.DistError as error:
        raise PeerLost(f"the ranks' store is gone before all have met ({str(error).splitlines()[0]})") from None


def _agreed(store: dist.Store, rank: int, size: int, timeout: timedelta) -> dist.Store:
    own = uuid4().hex
    if rank == 0:
        deadline = time.monotonic() + timeout.total_seconds()
        for other in range(1, size):
            _answer(store, other, own, deadline)
        common = dist.PrefixStore(own, store)
        common.set(_ALL, "yes")
        return common
    store.set(_asks(rank), own)
    name = store.get(_answers(rank, own)).decode()
    store.set(_heard(rank, name), "yes")
    common = dist.PrefixStore(name, store)
    common.wait([_ALL], timeout)  # what follows has a shorter limit than a rank that starts late
    return common


def _answer(store: dist.Store, rank: int, name: str, deadline: float) -> None:
    while not store.check([_heard(rank, name)]):
        if time.monotonic() > deadline:
            raise PeerLost(f"rank {rank} has not started in time: look at its node's log")
        if store.check([_asks(rank)]):  # an old question is answered too: nobody reads it
            store.set(_answers(rank, store.get(_asks(rank)).decode()), name)
        time.sleep(_POLL)


def _asks(rank: int) -> str:
    return f"start/{rank}"


def _answers(rank: int, question: str) -> str:
    return f"start/{rank}/{question}"


def _heard(rank: int, name: str) -> str:
    return f"start/{rank}/heard/{name}"
