"""Communication among processes through the key-value store of jax's coordinator.

No device takes part. A thread that writes in the background can use it while the devices train, a
process can report a failure, and there is a limit to how long the others wait for a process.
"""

import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed  # the store has no public interface

_NUMBERS = itertools.count()


class KVStoreSync:
    """Collective operations on JSON values among all processes of the run.

    All processes must create their instances in the same order and call the same operations with
    the same topics. A topic is used once. A run of one process communicates with itself.
    """

    def __init__(self, timeout: int):
        """timeout: seconds to wait for the slowest process, in each operation."""
        self._timeout = timeout
        self._prefix = f"cogview_jax/{next(_NUMBERS)}"
        self._numbers = itertools.count()
        self._past: list[str] = []

    def next_number(self) -> int:
        """The next sequence number, for topics. All processes must call this in the same order."""
        return next(self._numbers)

    def all_gather(self, topic: str, value: Any) -> list[Any]:
        """The JSON values of all processes, in the order of the processes.

        Raises:
            TimeoutError: a process did not call this in time. All that wait get the same message,
                which names the process.
        """
        count, index = jax.process_count(), jax.process_index()
        if count == 1:
            return [value]
        client, key = distributed.global_state.client, f"{self._prefix}/{topic}"
        assert client is not None, "several processes are connected by jax.distributed"
        if index > 0:
            client.key_value_set(f"{key}/{index}", json.dumps(value))
            # Process 0 may have to wait as long as the timeout for the others first.
            return _values(self._get(client, f"{key}/all", 2 * self._timeout, "process 0"))
        deadline = time.monotonic() + self._timeout
        values: list[Any] = [value]
        try:
            for other in range(1, count):
                left = deadline - time.monotonic()
                text = self._get(client, f"{key}/{other}", left, f"process {other}")
                values.append(json.loads(text))
        except TimeoutError as error:
            client.key_value_set(f"{key}/all", json.dumps(str(error)))
            raise
        client.key_value_set(f"{key}/all", json.dumps(values))
        # A process that has sent its value has read the result of the operation before.
        for past in self._past:
            client.key_value_delete(past)
        self._past = [f"{key}/{who}" for who in (*range(1, count), "all")]
        return values

    def broadcast(self, topic: str, function: Callable[[], Any]) -> Any:
        """Calls `function()` on process 0 and returns its JSON value on all processes."""
        value = function() if jax.process_index() == 0 else None
        return self.all_gather(topic, value)[0]

    def _get(self, client: Any, key: str, seconds: float, who: str) -> str:
        try:
            return client.blocking_key_value_get(key, max(1, int(1000 * seconds)))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
            raise TimeoutError(f"{who} did not answer within {self._timeout} s") from error


def _values(text: str) -> list[Any]:
    values = json.loads(text)
    if isinstance(values, str):
        raise TimeoutError(values)
    return values
