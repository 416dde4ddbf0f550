"""Signals to a training run: recorded from the start of the process, acted on between two iterations.

    SIGTERM, SIGUSR1, SIGHUP   finish the iteration, write a checkpoint, exit with `errors.EXIT_REQUEUE`
    SIGUSR2                    write a profiler trace of the next iterations

Slurm sends SIGUSR1 before the time limit (``--signal=USR1@120``), Kubernetes SIGTERM before it evicts, and a terminal
SIGHUP when it is closed, which stays ignored under ``nohup``. Nothing heavy is imported here, so that a launcher
listens before it imports torch.
"""

import signal
from types import FrameType

_STOP = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class Signals:
    """What signals have asked of this process; nothing before `listen`."""

    def __init__(self) -> None:
        self.stop = False
        """Stays true: who asked to stop is not to be asked again."""
        self._profile = False

    def listen(self) -> "Signals":
        """Handle the signals for the rest of the process's life."""
        for number in (*_STOP, signal.SIGUSR2):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)
        return self

    def _note(self, number: int, _: FrameType | None) -> None:
        if number in _STOP:
            self.stop = True
        else:
            self._profile = True

    def take_profile(self) -> bool:
        """Whether a trace was asked for since the last call."""
        if not self._profile:
            return False
        self._profile = False
        return True


def ignore_stop() -> None:
    """Ignore further signals to stop until the process ends, by itself or with its parent."""
    for number in _STOP:
        signal.signal(number, signal.SIG_IGN)
