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
    """Another rank is gone, or did not come; said in one line. The same command, started again, goes on."""


class Requeue(Exception):
    """The run was asked to stop, and is safe on disk."""
