"""What goes wrong in ways that a user can mend, and how a process says so when it ends."""

EXIT_BAD_INPUT = 2
"""Bad input, or a failure that only its user can mend: one line on stderr says what and how."""
EXIT_REQUEUE = 75
"""Stopped by SIGTERM or SIGUSR1 with a checkpoint written: start the same command again to go on."""
EXIT_PEER_LOST = 76
"""A healthy rank ends because another one died, failed or hangs: start the same command again."""


class LaddError(Exception):
    """A problem with a remedy, said in one line that names the key or file."""


class DamagedError(LaddError):
    """A checkpoint that cannot be read whole."""


class MissingWeights(LaddError):
    """Weights that a score needs, which are missing or damaged: other scores can do without them."""


class PeerLost(Exception):
    """Another rank is gone, did not come, or is on a node at fault; said in one line. The same command goes on.

    Args:
        hosts: where the ranks at fault run, as far as that is known.
    """

    def __init__(self, text: str, hosts: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.hosts = hosts


class Requeue(Exception):
    """The run was asked to stop, and is safe on disk."""
