"""What goes wrong when a kernel is called with input that it cannot serve."""


class KernelError(ValueError):
    """Input that no kernel here can serve; the message names the argument and the remedy."""


class KernelUnavailable(RuntimeError):
    """Triton was asked for where it cannot run; the message says why and what to do."""
