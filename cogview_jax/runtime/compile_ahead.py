"""Compiles a program in a thread of its own while other work goes on.

XLA compiles without Python's lock, so programs that are compiled together take little longer than
the slowest of them. jax keeps what was compiled: a call with arguments of the same shapes, types
and devices finds it.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import jax


@contextlib.contextmanager
def compile_ahead(program: Any, *args: Any, **kwargs: Any) -> Iterator[None]:
    """Compiles a jitted `program` for these arguments, or their shapes, while the block runs.

    The block is left when that is done, or at once where something is raised in it, such as
    KeyboardInterrupt. Where compiling fails nothing is raised, for the call of the program fails in
    the same way.
    """

    def compile_it() -> None:
        with contextlib.suppress(Exception):
            program.lower(*args, **kwargs).compile()

    # No daemon: XLA must not compile while the interpreter ends. An interrupted command leaves
    # without that (`command_line`).
    thread = threading.Thread(target=compile_it, name="compile ahead")
    thread.start()
    yield
    thread.join()


def only_device(params: Any) -> jax.sharding.Sharding | None:
    """Where arrays lie if it is a single device; None for others, and for those of no device.

    On several devices XLA chooses how the results of a program are split, so nothing that takes
    them can be compiled before.
    """
    leaf = jax.tree.leaves(params)[0]
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
        return None
    return leaf.sharding if leaf.committed and len(leaf.sharding.device_set) == 1 else None


def on_device(shapes: Any, device: jax.sharding.Sharding) -> Any:
    """The shapes of a program's results, as they come when its `params` lie on `device`."""
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=device), shapes
    )
