"""Keys and values of the decode cache in 8 bits, for CPUs.

Every slot of every head has a scale of its own: 1/127 of its largest magnitude. What multiplies
the integers, queries or weights, is split into two int8 numbers a value as in
`quantization.integer_product`. So all sums of products are exact, whatever the number of rows.

Legend: B batch, T query positions, S slots, N heads, H head width.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from cogview_jax.models.quantization import join_halves, quantize_rows, split_in_halves


class QuantizedSlots(NamedTuple):
    """The keys or the values of a layer: integers x scale is what they stand for.

    The scale has the axes of the integers, so that both are cut, padded and written alike.
    """

    integers: Int8[Array, "B N S H"]
    scale: Float[Array, "B N S 1"]

    @classmethod
    def of(cls, x: Float[Array | np.ndarray, "B N S H"]) -> "QuantizedSlots":
        """Rounds keys or values to 8 bits."""
        return cls(*quantize_rows(x))

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> "QuantizedSlots":
        """Returns zeros that stand for an array of that shape, [B, N, S, H]."""
        return cls(jnp.zeros(shape, jnp.int8), jnp.zeros((*shape[:-1], 1)))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what they stand for: [B, N, S, H]."""
        return self.integers.shape

    def scores(self, queries: Float[Array | np.ndarray, "B N T H"]) -> Float[Array, "B N T S"]:
        """Computes the product of each query with each of these keys."""
        halves, unit = split_in_halves(queries)
        sums = jnp.einsum(
            "bnth,bnsh->bnts", halves, self.integers, preferred_element_type=jnp.int32
        )
        return join_halves(sums) * unit * jnp.swapaxes(self.scale, 2, 3)

    def average(self, weights: Float[Array | np.ndarray, "B N T S"]) -> Float[Array, "B N T H"]:
        """Computes the sum of these values, each times its weight.

        The scales of the values differ from slot to slot, so they multiply the weights before
        these are split.
        """
        halves, unit = split_in_halves(weights * jnp.swapaxes(self.scale, 2, 3))
        sums = jnp.einsum(
            "bnts,bnsh->bnth", halves, self.integers, preferred_element_type=jnp.int32
        )
        return join_halves(sums) * unit
