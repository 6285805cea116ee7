"""Random keys that mean the same whatever jax is set to.

jax's settings choose the generator of a key, shift its seed, and decide whether the numbers of an
array depend on how it is split: with some of them an image depends on the batch it is sampled in.
"""

import jax
from jaxtyping import Key

from cogview_jax.runtime.errors import InputError

#: Settings of jax under which Threefry gives other numbers, and what they have to be.
_NEEDED = {"jax_threefry_partitionable": True, "jax_random_seed_offset": 0}


def random_key(seed: int) -> Key[jax.Array, ""]:
    """The typed key of a seed: Threefry's, whatever jax's default generator is.

    Raises:
        InputError: jax is set to give other numbers from it, or to make them depend on the mesh.
    """
    for name, needed in _NEEDED.items():
        found = getattr(jax.config, name)
        if found != needed:
            raise InputError(
                f"{name.upper()} is {found}: the same seeds would give other numbers; leave it at"
                f" {needed}"
            )
    return jax.random.key(seed, impl="threefry2x32")
