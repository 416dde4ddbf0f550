"""Runs a launcher's work on one rank under the watchdog, and turns its end into an exit code."""

import sys
import traceback
from collections.abc import Callable

from ladd_dist.distributed import world as distributed
from ladd_dist.distributed.world import World
from ladd_dist.errors import EXIT_BAD_INPUT, EXIT_PEER_LOST, EXIT_REQUEUE, LaddError, PeerLost, Requeue
from ladd_dist.files.run_lock import RunLock
from ladd_dist.log import log
from ladd_dist.supervision import exits
from ladd_dist.supervision.watchdog import Watchdog


def supervise(world: World, hang_timeout: float, work: Callable[[], None], lock: RunLock | None = None) -> None:
    """Run ``work`` and leave the process group, both under the watchdog; then release the lock, if the work took it.

    Ends with one of the exit codes of `errors`, or with 1 for an error of this rank's own that nobody foresaw.
    """
    lock = lock or RunLock()
    watchdog = Watchdog(world, hang_timeout, farewell=lock.release)
    code, reason = 0, ""
    hosts: tuple[str, ...] = ()
    try:
        code = _run(work)
        distributed.stop()
    except Exception as error:
        watchdog.await_diagnosis(error)
        code, reason = print_error(error), f"{type(error).__name__}: {error}"
        hosts = error.hosts if isinstance(error, PeerLost) else ()
        watchdog.fail(error)
    finally:
        watchdog.stop()
        lock.release()
    exits.leave(code, reason, hosts)
    if code:
        exits.end(code)


def _run(work: Callable[[], None]) -> int:
    try:
        work()
    except Requeue as stop:
        log(str(stop))
        return EXIT_REQUEUE
    return 0


def print_error(error: Exception) -> int:
    """Print an error, at once: the launcher may end this process when others leave. Returns the exit code."""
    if isinstance(error, LaddError | PeerLost):
        print(f"error: {error}", file=sys.stderr, flush=True)
        return EXIT_BAD_INPUT if isinstance(error, LaddError) else EXIT_PEER_LOST
    traceback.print_exception(error)
    return 1
