"""Processes that tell each other how something went.

Through the store that jax's coordinator keeps, and not by a computation on the devices: a thread
that writes in the background can use it while the devices train, what is said can be a failure, and
a process that says nothing is waited for only so long.
"""

import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed  # the store has no public door

_NUMBERS = itertools.count()


class Agreement:
    """Exchanges among all processes of the run.

    Every process makes its agreements in the same order, and takes part in every exchange with the
    same topic, which is used once; in a run of one it hears itself.
    """

    def __init__(self, timeout: int):
        """timeout: seconds to wait in an exchange for the slowest process."""
        self._timeout = timeout
        self._place = f"cogview_jax/{next(_NUMBERS)}"
        self._numbers = itertools.count()
        self._past: list[str] = []

    def number(self) -> int:
        """One that was not given before, for topics; all processes ask in the same order."""
        return next(self._numbers)

    def exchange(self, topic: str, said: Any) -> list[Any]:
        """What every process says, in their order; JSON values.

        Raises:
            TimeoutError: a process did not say anything in time; all that wait hear which.
        """
        count, index = jax.process_count(), jax.process_index()
        if count == 1:
            return [said]
        client, place = distributed.global_state.client, f"{self._place}/{topic}"
        if index > 0:
            client.key_value_set(f"{place}/{index}", json.dumps(said))
            # Process 0 may have to wait as long as the timeout for the others first.
            return _heard(self._get(client, f"{place}/all", 2 * self._timeout, "process 0"))
        deadline = time.monotonic() + self._timeout
        heard: list[Any] = [said]
        try:
            for other in range(1, count):
                left = deadline - time.monotonic()
                text = self._get(client, f"{place}/{other}", left, f"process {other}")
                heard.append(json.loads(text))
        except TimeoutError as error:
            client.key_value_set(f"{place}/all", json.dumps(str(error)))
            raise
        client.key_value_set(f"{place}/all", json.dumps(heard))
        # Whoever has taken part in this exchange has heard the one before.
        for key in self._past:
            client.key_value_delete(key)
        self._past = [f"{place}/{who}" for who in (*range(1, count), "all")]
        return heard

    def first(self, topic: str, function: Callable[[], Any]) -> Any:
        """`function()` of process 0, a JSON value, on all."""
        said = function() if jax.process_index() == 0 else None
        return self.exchange(topic, said)[0]

    def _get(self, client: Any, key: str, seconds: float, who: str) -> str:
        try:
            return client.blocking_key_value_get(key, max(1, int(1000 * seconds)))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
            raise TimeoutError(f"{who} did not answer within {self._timeout} s") from error


def _heard(text: str) -> list[Any]:
    heard = json.loads(text)
    if isinstance(heard, str):
        raise TimeoutError(heard)
    return heard
