"""Communication among processes through the key-value store of jax's coordinator.

No device takes part. A thread that writes in the background can use it while the devices train, a
process can report a failure, and there is a limit to how long the others wait for a process.
"""

import itertools
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax._src import distributed  # the store has no public interface

from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.faults import reason, where
from cogview_jax.runtime.processes import host_name

_NUMBERS = itertools.count()


class KVStoreSync:
    """Collective operations on JSON values among processes of the run.

    All processes must create their instances in the same order, and the members call the same
    operations with the same topics. A topic is used once. A single member communicates with itself.
    """

    def __init__(self, timeout: int, members: Sequence[int] | None = None):
        """Nothing is said yet.

        Args:
            timeout: seconds to wait for the slowest process, in each operation.
            members: the processes that communicate; by default all of the run.
        """
        self._timeout, self._members = timeout, members
        self._prefix = f"cogview_jax/{next(_NUMBERS)}"
        self._numbers = itertools.count()
        self._past: list[str] = []

    @property
    def is_first(self) -> bool:
        """Whether this process is the first of the members."""
        return jax.process_index() == self._all()[0]

    def next_number(self) -> int:
        """The next sequence number, for topics. All processes must call this in the same order."""
        return next(self._numbers)

    def all_gather(self, topic: str, value: Any) -> list[Any]:
        """The JSON values of all members, in the order of the members.

        Raises:
            TimeoutError: a process did not call this in time. All that wait get the same message,
                which names the process.
        """
        first, *others = self._all()
        if not others:
            return [value]
        client, key = distributed.global_state.client, f"{self._prefix}/{topic}"
        assert client is not None, "several processes are connected by jax.distributed"
        if not self.is_first:
            client.key_value_set(f"{key}/{jax.process_index()}", json.dumps(value))
            # The first may have to wait as long as the timeout for the others.
            return _values(self._get(client, f"{key}/all", 2 * self._timeout, f"process {first}"))
        deadline = time.monotonic() + self._timeout
        values: list[Any] = [value]
        try:
            for other in others:
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
        self._past = [f"{key}/{who}" for who in (*others, "all")]
        return values

    def broadcast(self, topic: str, function: Callable[[], Any]) -> Any:
        """Calls `function()` on the first member and returns its JSON value on all of them."""
        value = function() if self.is_first else None
        return self.all_gather(topic, value)[0]

    def together(self, work: Callable[[], Any], mine: bool = True) -> list[Any]:
        """Lets members work, and waits for all of them.

        Args:
            work: returns a JSON value.
            mine: whether this member works; the others wait only, and their value is None.

        Returns:
            The values of all members.

        Raises:
            InputError, SystemFault: what the work of one raised; all raise it, and say whose it was
                if that was not the first. An OSError is a SystemFault for the others.
        """
        value, failure = None, None
        if mine:
            try:
                value = work()
            except Exception as error:
                failure = error
        why = failure and f"{where(failure)}{reason(failure)}"
        topic = f"{self.next_number()}/together"
        said = self.all_gather(topic, [value, why, isinstance(failure, InputError), host_name()])
        if failure is not None:
            raise failure
        for process, (_, why, bad_input, host) in zip(self._all(), said, strict=True):
            if why:
                who = f"process {process} on {host}: " if process else ""
                raise (InputError if bad_input else SystemFault)(f"{who}{why}")
        return [value for value, *_ in said]

    def _all(self) -> Sequence[int]:
        return self._members or range(jax.process_count())

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
