"""An image that a client waits for, and the order in which clients are served."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from cogview_jax.sampling.engine import SamplingRequest


class Refused(RuntimeError):
    """The server cannot do what a request asks for now; one line for the client."""


class QueueFull(Refused):
    """As many images wait as may."""


class Closing(Refused):
    """The server is about to end and takes no more requests."""


class TimedOut(Refused):
    """The time of a request is over."""


class DeviceFailed(Refused):
    """The device that computes has failed."""


@dataclass(eq=False)
class ImageJob:
    """One image to sample.

    Attributes:
        request: what is sampled.
        prompt: the tokens that it continues, int32 [n].
        client: whose it is; clients take turns.
        on_codes: is given the codes so far, int32 [rows, columns], after every row of them; the
            last time all of them. The loop's thread calls it.
        on_error: is given the reason why there will be no image, once.
        given: codes that are known already, int32 [codes]; see `ContinuousBatch.add`.
        deadline: when its time is over, of `time.monotonic`.
        failures: how often the device has failed while it was sampled.
    """

    request: SamplingRequest
    prompt: np.ndarray
    client: str
    on_codes: Callable[[np.ndarray], None]
    on_error: Callable[[Refused], None]
    given: np.ndarray | None = None
    deadline: float = float("inf")
    failures: int = 0
    since: float = field(default_factory=time.monotonic)


class FairQueue:
    """Jobs that wait. Clients take turns, and the jobs of a client come in their order."""

    def __init__(self) -> None:
        """Nobody waits."""
        self._waiting: OrderedDict[str, deque[ImageJob]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[ImageJob]:
        return (job for jobs in self._waiting.values() for job in jobs)

    def add(self, jobs: Iterable[ImageJob]) -> None:
        """Lets jobs wait behind those of their clients."""
        for job in jobs:
            self._waiting.setdefault(job.client, deque()).append(job)

    def put_back(self, job: ImageJob) -> None:
        """Lets a job that had begun wait before all others."""
        self._waiting.setdefault(job.client, deque()).appendleft(job)
        self._waiting.move_to_end(job.client, last=False)

    def first(self) -> ImageJob | None:
        """The job whose turn it is; it goes on waiting."""
        return next(iter(self), None)

    def pop(self) -> ImageJob:
        """Takes the job whose turn it is; its client is the last to have another turn."""
        client, jobs = next(iter(self._waiting.items()))
        job = jobs.popleft()
        self._waiting.move_to_end(client)
        if not jobs:
            del self._waiting[client]
        return job

    def remove(self, job: ImageJob) -> bool:
        """Takes a job out; False where it does not wait."""
        jobs = self._waiting.get(job.client, ())
        if job not in jobs:
            return False
        self._waiting[job.client].remove(job)
        if not self._waiting[job.client]:
            del self._waiting[job.client]
        return True
