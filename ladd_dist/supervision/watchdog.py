"""A rank that dies, fails or hangs brings the whole job down within a stated time, by name.

Each rank posts a small `Beat` to the job's store every `TICK` seconds. Rank 0 reads all of them, every other rank
reads rank 0's: 512 ranks cost the store about a thousand small messages a second, and the GPUs nothing. Whoever
finds something wrong posts one `Diagnosis`, prints it, and all ranks exit with `EXIT_PEER_LOST`.

    a rank ends with an exception      at once
    a process is killed or frozen      `DEAD_AFTER` seconds
    no rank enters another phase       ``train.hang_timeout`` seconds, for work that names its phases

and at most ``3 * TICK + _LINGER`` on top until the last process is gone. Two threads do it, because an operation on
a store whose host is frozen blocks without limit: one talks to the store, the other only watches the first.
"""

import faulthandler
import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import torch.distributed as dist

from ladd_dist.distributed.world import World
from ladd_dist.errors import EXIT_PEER_LOST, LaddError, PeerLost
from ladd_dist.supervision import exits
from ladd_dist.supervision.diagnosis import Beat, Diagnosis, RankState, Sighting, diagnose, name

TICK = 1.0
"""Seconds between two beats."""
DEAD_AFTER = 30.0
"""Seconds without a beat after which a rank counts as dead. A thread needs the interpreter for its beat, so this
must exceed the longest stretch in which a library keeps it to itself."""
_GRACE = 3.0
"""Seconds in which a rank may find the bad input for itself that another one has reported."""
_LINGER = 10.0
"""Seconds that leaving ranks wait for one another at most."""
_DIAGNOSIS, _NOTHING = "diagnosis", "null"


class Watchdog:
    """Watches from its construction to `stop` or `fail`. Alone in the world it does nothing.

    Args:
        world: the started ranks.
        hang_timeout: seconds.
        farewell: what is to be done before a diagnosis ends the process; it must not block for long.
    """

    def __init__(self, world: World, hang_timeout: float, farewell: Callable[[], None] = lambda: None) -> None:
        self._world, self._hang_timeout, self._farewell = world, hang_timeout, farewell
        self._state: RankState = "runs"
        self._error = ""
        self._diagnosis: Diagnosis | None = None
        self._on = world.store is not None and world.size > 1
        if not self._on:
            return
        self._store = dist.PrefixStore("watchdog", world.store.clone())  # type: ignore[union-attr]
        self._watched = range(world.size) if world.rank == 0 else range(1)
        self._pulse, self._clock, self._answered = 0, 0.0, 0.0
        self._records = {rank: _Record() for rank in self._watched}
        self._wake, self._out, self._stopped = threading.Event(), threading.Event(), threading.Event()
        self._talker = threading.Thread(target=self._talk, name="watchdog store", daemon=True)
        self._watcher = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._talker.start()
        self._watcher.start()

    def stop(self) -> None:
        """Leave after the work is done. Rank 0 stays until every rank has left: it may hold the store."""
        if self._on and self._state == "runs":
            self._end("done", None if self._world.rank == 0 else _LINGER)

    def await_diagnosis(self, error: BaseException) -> None:
        """Wait for the diagnosis, and exit by it, if the error is a broken collective: another rank's fault.

        Returns if it is not, or if after `DEAD_AFTER` and some seconds no rank is to blame.
        """
        if self._on and (isinstance(error, dist.DistError) or "gloo" in str(error)):
            self._out.set()
            time.sleep(DEAD_AFTER + _LINGER)

    def fail(self, error: BaseException) -> None:
        """Leave with an error of this rank's own, which the others then name."""
        if self._on:
            refused = isinstance(error, LaddError | PeerLost)  # which ranks find alike
            line = " ".join(str(error).split())[:300]
            self._error = line if refused else f"{type(error).__name__}: {line}"
            self._end("refused" if refused else "failed", _LINGER)

    def _end(self, state: RankState, patience: float | None) -> None:
        self._leave(state, patience)
        self._stopped.set()
        self._watcher.join()  # if it has a diagnosis by now, it ends the process instead

    def _leave(self, state: RankState, patience: float | None) -> None:
        self._state = state
        self._out.set()
        self._wake.set()
        self._talker.join(patience)

    def _talk(self) -> None:
        """The thread that may block in the store."""
        try:
            for key in (_DIAGNOSIS, *map(_key, self._watched)):
                self._store.compare_set(key, "", _NOTHING)  # reading a key that is not there would block
            while not self._exchange():
                self._wake.wait(TICK)
                self._wake.clear()
        except RuntimeError:  # torch's store errors are no closer related
            self._store_is_lost("closed the connection")

    def _exchange(self) -> bool:
        """Post and read once; returns whether this rank is free to end."""
        state, rank = self._state, self._world.rank
        self._pulse += 1
        place = self._world.position.place
        mine = Beat(socket.gethostname(), os.getpid(), self._pulse, state, *place, self._error)
        self._store.set(_key(rank), json.dumps(mine))
        diagnosis, *beats = self._store.multi_get([_DIAGNOSIS, *map(_key, self._watched)])
        self._answered = self._clock
        for record, beat in zip(self._records.values(), beats, strict=True):
            record.update(json.loads(beat), self._clock)
        seen = {r: record.seen(self._clock) for r, record in self._records.items()}
        if diagnosis == _NOTHING.encode() and state in ("runs", "done"):
            found = diagnose(seen, rank, DEAD_AFTER, math.inf if rank else self._hang_timeout)
            # The first of several judges wins, and everyone takes its diagnosis.
            diagnosis = self._store.compare_set(_DIAGNOSIS, _NOTHING, found.to_json()) if found else diagnosis
        if diagnosis != _NOTHING.encode():
            self._diagnosis = self._diagnosis or Diagnosis.of_json(diagnosis)
        return state != "runs" and not self._needed(state, seen)

    def _needed(self, state: RankState, seen: dict[int, Sighting]) -> bool:
        """Rank 0 leaves last; who failed waits for rank 0, lest the launcher ends it before it has said why."""
        gone = self._diagnosis.gone if self._diagnosis else ()
        if self._world.rank == 0:
            return any(s.runs for rank, s in seen.items() if rank not in (0, *gone))
        return state in ("failed", "refused") and seen[0].runs and 0 not in gone

    def _watch(self) -> None:
        """The thread that never blocks: keeps the time, and ends the process."""
        before = time.monotonic()
        while not self._stopped.wait(TICK / 2):
            now = time.monotonic()
            # Time in which this process itself was frozen (a suspended job) is no evidence against the others.
            self._clock += min(now - before, DEAD_AFTER / 4)
            before = now
            if self._clock - self._answered > DEAD_AFTER:
                self._store_is_lost(f"has not answered for {DEAD_AFTER:.0f} s")
            if self._diagnosis:
                return self._end_process(self._diagnosis)

    def _store_is_lost(self, how: str) -> None:
        """Judge by a store that is not there any more; a rank that is leaving does not mind."""
        if self._state != "runs" or self._diagnosis:
            return
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            host = os.environ.get("MASTER_ADDR", "")
            text = f"the launcher's store on {host} {how}: that node is gone or cut off"
        else:
            beat = self._records[0].beat
            last = f", last seen {beat.where}" if beat else ""
            host = beat.host if beat else ""
            text = f"{name(0, beat)} is gone: the job's store, which it holds, {how}{last}"
        gone = tuple(range(self._world.size))
        self._diagnosis = Diagnosis(text, None, gone=gone, hosts=(host,) if host else ())

    def _end_process(self, diagnosis: Diagnosis) -> None:
        if diagnosis.patient:
            self._out.wait(_GRACE)
        if self._state in ("failed", "refused"):
            return  # with an error of its own, which the main thread is telling
        try:
            self._print(diagnosis)
            if diagnosis.found_by is not None:
                self._leave("left", _LINGER)
            exits.leave(EXIT_PEER_LOST, diagnosis.text, diagnosis.hosts)
            self._farewell()
        finally:  # whatever became of stderr
            os._exit(EXIT_PEER_LOST)

    def _print(self, diagnosis: Diagnosis) -> None:
        world = self._world
        # Without a store one line for each node's log is the fewest that reach somebody for certain.
        if diagnosis.found_by == world.rank or (
            diagnosis.found_by is None and (world.local_rank == 0 or world.rank == 1)
        ):
            saved = f"the newest checkpoint is {world.position.saved}; " if world.position.saved else ""
            # Past Python's streams: the stuck main thread may hold their locks. The newline ends a progress bar.
            with suppress(OSError):  # the console may be gone
                os.write(2, f"\nerror: {diagnosis.text}; {saved}start the same command again\n".encode())
        if world.rank in diagnosis.dumps:
            faulthandler.dump_traceback(2)


class _Record:
    """When a rank's beat and place last changed, on the watchdog's clock."""

    def __init__(self) -> None:
        self.beat: Beat | None = None
        self._heard = self._moved = 0.0

    def update(self, fields: list | None, now: float) -> None:
        beat, old = Beat(*fields) if fields else None, self.beat
        if beat != old:
            self._heard = now
        if beat and not (old and beat.place == old.place):
            self._moved = now
        self.beat = beat

    def seen(self, now: float) -> Sighting:
        return Sighting(self.beat, now - self._heard, now - self._moved)


def _key(rank: int) -> str:
    return f"beat/{rank}"
