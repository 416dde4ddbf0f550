"""The pods of one start find one another, before torchrun is started in any of them.

torchrun waits ten minutes for its other nodes, where pods may wait for hours, and takes whoever answers at its first
node for a partner: a pod that is replaced before the others have missed it would join them, and be lost as they end.
So every pod asks the first one, again and again, until that says that all are there. Once all know, it says nothing
more: a pod that comes later asks in vain until the first pod is a new one, too.
"""

import math
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO
from uuid import uuid4

ASK_EVERY = 2.0
"""Seconds between a pod's questions."""
_GONE_AFTER = 5 * ASK_EVERY
"""Seconds without a question after which a pod is there no longer."""
_PATIENCE = 5.0
"""Seconds that a question, or an answer, may take."""
_SAY_EVERY = 60.0
_HEARD = "heard\n"
_LONGEST = 64

Say = Callable[[str], None]


def meet(node: int, nodes: int, host: str, port: int, say: Say, check: Callable[[], None]) -> str:
    """Wait until all pods are there, without limit.

    Args:
        node: this pod's number.
        nodes: how many there are.
        host: where the first pod is, or will be.
        say: told every minute for whom this waits.
        check: called before and between looks; what it raises ends the wait.

    Returns:
        The name of this start: the same in all its pods, and in those of no other.
    """
    check()
    return _gather(nodes, port, say, check) if node == 0 else _ask(node, host, port, say, check)


class _Gathering:
    """Who has asked, and who has been told."""

    def __init__(self, nodes: int) -> None:
        self.name = uuid4().hex
        self._asked: dict[int, float] = {}
        self._untold = set(range(1, nodes))
        self._complete = False

    def done(self) -> bool:
        """Whether all have been told."""
        return not self._untold

    def missing(self) -> list[int]:
        """Who is not there, or has been there and is not any more."""
        since = time.monotonic() - _GONE_AFTER
        return sorted(node for node in self._untold if self._asked.get(node, -math.inf) < since)

    def answer(self, lines: TextIO) -> None:
        """Hear a pod's question, and tell it the name once all are there."""
        node = int(lines.readline(_LONGEST))
        self._asked[node] = time.monotonic()
        self._complete = self._complete or not self.missing()
        lines.write(f"{self.name if self._complete else ''}\n")
        lines.flush()
        if self._complete and lines.readline(_LONGEST) == _HEARD:
            self._untold.discard(node)


def _gather(nodes: int, port: int, say: Say, check: Callable[[], None]) -> str:
    gathering, said = _Gathering(nodes), time.monotonic()
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    with socket.create_server(("", port), family=family, backlog=nodes, dualstack_ipv6=both) as server:
        server.settimeout(ASK_EVERY)
        while not gathering.done():
            with suppress(OSError, ValueError):  # nobody asks, or who does is gone or no pod
                connection, _ = server.accept()
                connection.settimeout(_PATIENCE)
                with connection, connection.makefile("rw", encoding="ascii") as lines:
                    gathering.answer(lines)
            if time.monotonic() - said > _SAY_EVERY:
                said = time.monotonic()
                say(f"waiting for pods {', '.join(map(str, gathering.missing()))}")
            check()
    return gathering.name


def _ask(node: int, host: str, port: int, say: Say, check: Callable[[], None]) -> str:
    said = time.monotonic()
    while True:
        try:
            if name := _question(node, host, port):
                return name
            answer = "waits for others"
        except (OSError, ValueError) as error:
            answer = f"does not answer yet ({error})"
        if time.monotonic() - said > _SAY_EVERY:
            said = time.monotonic()
            say(f"waiting, {host} {answer}")
        check()
        time.sleep(ASK_EVERY)


def _question(node: int, host: str, port: int) -> str:
    with (
        socket.create_connection((host, port), _PATIENCE) as connection,
        connection.makefile("rw", encoding="ascii") as lines,
    ):
        lines.write(f"{node}\n")
        lines.flush()
        if name := lines.readline(_LONGEST).strip():
            lines.write(_HEARD)
            lines.flush()
        return name
