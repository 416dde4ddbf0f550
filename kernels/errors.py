"""Errors of calling a kernel."""


class KernelError(ValueError):
    """Arguments that a kernel cannot take; the message names the argument and the remedy."""


class KernelUnavailable(RuntimeError):
    """Triton was asked for where it cannot run; the message says why and what to do."""
