"""A run of one; test_processes.py has runs of several, and of one that says nothing."""

import pytest

from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.kv_store_sync import KVStoreSync


def test_alone_it_hears_itself():
    sync = KVStoreSync(1)
    assert sync.all_gather("a", {"x": [1, None]}) == [{"x": [1, None]}]
    assert sync.broadcast("b", lambda: 5) == 5
    assert sync.together(lambda: 6) == [6]
    assert sync.together(lambda: 6, mine=False) == [None]


class Said(KVStoreSync):
    """Two processes, of which the second has said something."""

    def __init__(self, host, *others):
        super().__init__(1, [0, 3])
        self._host, self._others = host, others

    def all_gather(self, topic, value):
        return [*self._others, value] if self._host else [value, *self._others]


def raised(sync, work):
    with pytest.raises((InputError, SystemFault, OSError)) as caught:
        sync.together(work)
    return caught.value


def test_what_one_raises_all_raise():
    def fail():
        raise OSError(28, "No space left on device", "/scratch/a")

    good, bad = [5, None, False, "tpu-3"], [None, "a: 403 Forbidden", True, "tpu-3"]
    assert Said(0, good).together(lambda: 4) == [4, 5]
    error = raised(Said(0, bad), lambda: 4)
    assert isinstance(error, InputError)
    assert str(error) == "process 3 on tpu-3: a: 403 Forbidden"
    assert isinstance(raised(Said(0, bad), fail), OSError), "its own"
    full = [None, "/scratch/a: No space left on device", False, "tpu-0"]
    error = raised(Said(3, full), lambda: 4)
    assert isinstance(error, SystemFault)
    assert str(error) == "/scratch/a: No space left on device", "the first is not named"
