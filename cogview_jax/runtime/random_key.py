"""Random keys that give the same numbers under all settings of jax.

Settings of jax choose the generator of a key, shift its seed, and decide whether random arrays
depend on their sharding. Under some of them a sample depends on the batch it is generated in.
"""

import jax
from jaxtyping import Key

from cogview_jax.runtime.errors import InputError

#: The generator of all keys.
GENERATOR = "threefry2x32"
#: Settings of jax that change the numbers of Threefry, and the values that they need.
_NEEDED = {"jax_threefry_partitionable": True, "jax_random_seed_offset": 0}


def random_key(seed: int | jax.Array) -> Key[jax.Array, ""]:
    """Returns the typed Threefry key of a seed, whatever the default generator of jax is.

    Raises:
        InputError: a setting of jax would change its numbers, or make them depend on the mesh.
    """
    need_settings()
    return jax.random.key(seed, impl=GENERATOR)


def need_settings() -> None:
    """Raises the InputError of `random_key`, which a program that is compiled cannot."""
    for name, needed in _NEEDED.items():
        found = getattr(jax.config, name)
        if found != needed:
            raise InputError(
                f"{name.upper()} is {found}: the same seeds would give other numbers; leave it at"
                f" {needed}"
            )
