"""Calls that all processes of a server make, in the order of process 0.

A model that is split over the devices of several processes computes only where all of them run the
same program. Process 0 answers clients. Before it calls the model it tells the others, who do the
same and nothing else.
"""

import base64
import contextlib
import functools
import pickle
import threading
import traceback
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax

from cogview_jax.runtime.kv_store_sync import KVStoreSync
from cogview_jax.runtime.processes import log

#: What each model of a server is called for that computes something.
BASE = ("decode", "encode", "generation.preview")
SCORER = ("caption", "score", "captioning.compile")
UPSAMPLER = ("super_resolve", "super_resolution.compile")
BATCH = ("add", "advance", "clear", "compile", "remove")
#: Seconds that a process waits for another: as long as both live, which jax watches over.
_FOREVER = 10**8


class Orders:
    """Makes calls one after the other, on all processes alike.

    In a server of one process without a mesh it changes nothing.
    """

    def __init__(self, mesh: jax.sharding.Mesh | None = None):
        """`mesh` is that of all devices; None for a single one. Every process makes its own."""
        self.mesh = mesh
        self._several = jax.process_count() > 1
        self._sync = KVStoreSync(_FOREVER)
        self._lock = threading.RLock()
        self._models: dict[str, Any] = {}

    def ordered(self, name: str, model: Any, told: Collection[str]) -> Any:
        """The same model, of which the calls in `told` are made on all processes."""
        if self.mesh is None:
            return model
        self._models[name] = model
        return _Ordered(self, name, model, told)

    def call(self, name: str, path: str, arguments: tuple, keywords: Mapping[str, Any]) -> Any:
        """Calls a method of a model on all processes; the result of this one."""
        with self._lock:
            self._tell((name, path, arguments, dict(keywords)))
            return self._do(name, path, arguments, keywords)

    def follow(self) -> None:
        """Does what process 0 does, until it ends."""
        while (order := self._tell(None)) is not None:
            try:
                self._do(*order)
            except Exception:  # process 0 has met the same, and answers for it
                log(traceback.format_exc())

    def end(self) -> None:
        """Lets the others end."""
        with self._lock:
            self._tell(None)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What all processes do alike by themselves, such as reading a model."""
        with self._lock, self._placed():
            yield

    def agreed(self, value: Any) -> Any:
        """Process 0's value of JSON on all processes."""
        return self._sync.broadcast(f"{self._sync.next_number()}", lambda: value)

    def _placed(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def _do(self, name: str, path: str, arguments: tuple, keywords: Mapping[str, Any]) -> Any:
        method = functools.reduce(getattr, path.split("."), self._models[name])
        with self._placed():
            return method(*arguments, **keywords)

    def _tell(self, order: tuple | None) -> tuple | None:
        """Process 0's order, on all processes. Nobody but they can write what is read here."""
        if not self._several:
            return order
        text = base64.b64encode(pickle.dumps(order)).decode()
        return pickle.loads(base64.b64decode(self.agreed(text)))


class _Ordered:
    """A model, or a part of it, some of whose methods are called through `Orders`."""

    def __init__(self, orders: Orders, name: str, model: Any, told: Collection[str], at: str = ""):
        self._orders, self._name, self._model, self._told = orders, name, model, told
        self._at = at

    def __getattr__(self, name: str) -> Any:
        path, value = f"{self._at}{name}", getattr(self._model, name)
        if path in self._told:
            return lambda *arguments, **keywords: self._orders.call(
                self._name, path, arguments, keywords
            )
        if any(each.startswith(f"{path}.") for each in self._told):
            return _Ordered(self._orders, self._name, value, self._told, f"{path}.")
        return value
