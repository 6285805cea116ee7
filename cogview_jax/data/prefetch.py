"""Makes batches in a thread, so that they are on the devices before the step needs them."""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Failure:
    """Why there are no more items: `StopIteration`, or an error."""

    error: BaseException


class Prefetched(Generic[Item]):
    """Makes the items of an iterator ahead, in a background thread.

    If the iterator ends by placing a batch on the devices, the next batch is transferred while the
    current step runs.
    """

    def __init__(self, items: Iterator[Item], depth: int = 2):
        """Starts making at most `depth` items ahead. An error of `items` is raised by `get`."""
        self._items = items
        self._made: queue.Queue[Item | _Failure] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._make, name="prefetch", daemon=True)
        self._thread.start()

    def get(self, waiting: Callable[[], None] = lambda: None, every: float = 0.01) -> Item:
        """The next item; `waiting` is called about every `every` seconds that it is not there yet.

        Raises:
            StopIteration: there are no more.
        """
        while True:
            try:
                made = self._made.get(timeout=every)
                break
            except queue.Empty:
                waiting()
        if isinstance(made, _Failure):
            raise made.error
        return made

    def close(self) -> None:
        """Stops making items; one that is in the making is waited for, but not for ever."""
        self._closed.set()
        self._thread.join(timeout=10)

    def _make(self) -> None:
        while not self._closed.is_set():
            try:
                made: Item | _Failure = next(self._items)
            except BaseException as error:  # raised where it can be handled
                made = _Failure(error)
            while not self._closed.is_set():
                try:
                    self._made.put(made, timeout=0.05)
                    break
                except queue.Full:
                    continue
            if isinstance(made, _Failure):
                return
