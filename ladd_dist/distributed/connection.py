"""All ranks connected within a stated time; else one line says which of them cannot reach which other."""

import fcntl
import json
import re
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from ladd_dist.distributed.hanging import in_thread
from ladd_dist.errors import PeerLost

T = TypeVar("T")

LIMIT = timedelta(seconds=60)
"""How long ranks that have all met may take to connect. gloo takes up to five times its own limit to give up waiting
for another's call (8 s became 40 with torch 2.15), so nobody waits for that."""
_MARGIN = timedelta(seconds=10)
"""gloo, told to try for 4 s, was seen to try for 9."""
_OUTCOME, _CONNECTED = "outcome", "connected"
_SIOCGIFADDR = 0x8915


def connect(make: Callable[[timedelta], T], store: dist.Store, rank: int, size: int) -> T:
    """Have all ranks call ``make``, which connects them to one another.

    Args:
        make: takes the time that it may need.
        store: reaches all ranks, and nobody has used it for this before.

    Raises:
        PeerLost: on every rank alike, naming two that cannot reach each other, or those that are not done in time.
    """
    store.set(_who(rank), json.dumps([socket.gethostname(), *_addresses()]))
    waiting = store.clone()  # a connection of its own: one that waits serves nobody else

    def attempt() -> T:
        try:
            made = make(LIMIT)
        except Exception as error:
            store.compare_set(_OUTCOME, "", _trouble(str(error), store, rank, size))
            raise
        store.set(_done(rank), "yes")
        if store.add("count", 1) == size:
            store.compare_set(_OUTCOME, "", _CONNECTED)
        return made

    future = in_thread(attempt)
    outcome = _outcome(waiting, size)
    if outcome != _CONNECTED:
        _let_others_read(waiting, rank, size)
        raise PeerLost(
            f"{outcome}: look at the network between them, and whether GLOO_SOCKET_IFNAME names its device"
        )
    return future.result()


def _outcome(store: dist.Store, size: int) -> str:
    """The first rank's to tell one."""
    with suppress(dist.DistError):
        store.wait([_OUTCOME], LIMIT + _MARGIN)
    if store.check([_OUTCOME]):
        return store.get(_OUTCOME).decode()
    late = ", ".join(_name(rank, store) for rank in range(size) if not store.check([_done(rank)]))
    line = f"not connected to all other ranks within {LIMIT.total_seconds():.0f} s: {late}"
    return store.compare_set(_OUTCOME, "", line).decode()


def _let_others_read(store: dist.Store, rank: int, size: int) -> None:
    """The store may end with rank 0."""
    store.set(_read(rank), "yes")
    if rank == 0:
        with suppress(dist.DistError):
            store.wait([_read(other) for other in range(size)], _MARGIN)


def _trouble(error: str, store: dist.Store, rank: int, size: int) -> str:
    """What gloo says, with the rank in place of the address."""
    reason = error.splitlines()[0].rpartition("] ")[2].partition(", remote=")[0] if error else "no reason given"
    there = re.search(r"remote=\[([^\]]+)\]", error)
    others = (r for r in range(size) if there and there[1] in json.loads(store.get(_who(r)))[1:])
    other = next((_name(r, store) for r in others), "another rank")
    return f"{_name(rank, store)} gets no connection to {other} ({reason})"


def _name(rank: int, store: dist.Store) -> str:
    host = json.loads(store.get(_who(rank)))[0] if store.check([_who(rank)]) else "unknown"
    return f"rank {rank} (host {host})"


def _addresses() -> list[str]:
    """IPv4 addresses of this host's interfaces."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, interface in socket.if_nameindex():
            request = struct.pack("256s", interface.encode()[:15])
            try:
                found.append(socket.inet_ntoa(fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, request)[20:24]))
            except OSError:
                continue  # it has none
    return found


def _who(rank: int) -> str:
    return f"who/{rank}"


def _done(rank: int) -> str:
    return f"done/{rank}"


def _read(rank: int) -> str:
    return f"read/{rank}"
