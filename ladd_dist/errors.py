"""The one exception a user is meant to read."""


class LaddError(Exception):
    """Bad input. The message is one line that names the key or file and the remedy.

    Launchers print it without a traceback and exit with code 2.
    """
