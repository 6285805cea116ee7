"""Silences log messages of Orbax and tensorstore about errors that they also raise."""

import functools
import logging
import sys
from typing import Any

from cogview_jax.runtime.faults import system_error


@functools.cache
def silence() -> None:
    """Drops these messages for the rest of the program. All other messages are still shown.

    Orbax logs the exceptions of its threads and raises them again where they are joined. When one
    of several writes has failed, Orbax closes its event loop. Writes that end later then report the
    closed loop, and asyncio reports exceptions that were never retrieved, and tasks of Orbax that
    were never finished.
    """
    logging.getLogger("absl").addFilter(_is_news)
    logging.getLogger("asyncio").addFilter(_was_asked_for)
    sys.unraisablehook = functools.partial(_show, sys.unraisablehook)


def _is_news(record: logging.LogRecord) -> bool:
    repeated = "_SignalingThread.run() raised", "Handler Commit operations or the Commit callback"
    return not any(words in str(record.msg) for words in repeated)


def _was_asked_for(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    failed, message = error is not None and system_error(error) is not None, record.getMessage()
    unfinished = "Task was destroyed but it is pending" in message and "/orbax/" in message
    return not (unfinished or (failed and "exception was never retrieved" in message))


def _show(before: Any, unraisable: Any) -> None:
    if unraisable.object is None and str(unraisable.exc_value) == "Event loop is closed":
        return
    before(unraisable)
