"""Calls into networks that may never return."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

_NAME = "may hang"


def in_thread(act: Callable[[], T]) -> Future[T]:
    """Call something that may never return; whoever waits for the result says for how long."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=_NAME, daemon=True).start()
    return future


def hangs() -> bool:
    """Whether such a call has not returned: a process that Python ends in its midst is aborted by torch."""
    return any(thread.name == _NAME for thread in threading.enumerate())
