"""Finite scalar quantisation: each number of a vector is rounded to one of a few levels.

Mentzer et al. 2023 (arXiv 2309.15505). There is no codebook to learn or to collapse: a code is a
point of a grid.

Legend: b rows of a part of a batch, h w rows and columns of codes, K codes, D width of a code.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from cogview_jax.runtime.config import require_range
from cogview_jax.runtime.errors import InputError
from cogview_jax.tokenizers.quantisers.learned import Use
from cogview_jax.tokenizers.quantisers.quantiser import (
    CodebookTraining,
    Quantised,
    Quantiser,
    hits_of,
    straight_through,
    use_metrics,
)

#: Keeps the outermost levels within reach of the bound.
EPSILON = 1e-3


@dataclass(frozen=True, kw_only=True)
class FSQ(Quantiser):
    """Codes are points of a grid; nothing is learned.

    Attributes:
        levels: of each number of a vector: the model's `code_width` numbers, whose product is its
            `codebook`. The paper recommends (8, 8, 8), (8, 5, 5, 5), (8, 8, 8, 5) for 2^9, 2^10 and
            2^12 codes, or nearly.
    """

    State: ClassVar[type] = Use
    kind: Literal["fsq"] = "fsq"
    levels: tuple[int, ...] = (8, 5, 5, 5)

    def __post_init__(self) -> None:
        require_range(self, "levels", at_least=2, at_most=2**10)

    def check(self, codes: int, width: int) -> None:
        """InputError where the grid has another size."""
        if (codes, width) != (math.prod(self.levels), len(self.levels)):
            raise InputError(
                f"quantiser.levels {self.levels} have {math.prod(self.levels)} codes of"
                f" {len(self.levels)} numbers, but codebook is {codes} and code_width {width}"
            )

    def remedies(self, training: CodebookTraining, width: int) -> list[str]:
        """An encoder that changes less at a time, or fewer codes: there is no codebook to move."""
        return ["a lower optimizer.lr", "fewer model.quantiser.levels"]

    def same_codes(self, other: Quantiser) -> bool:
        """Whether both have the same levels."""
        return isinstance(other, FSQ) and self.levels == other.levels

    def init(self, key: Key[Array, ""], codes: int, width: int) -> tuple[dict[str, Any], Use]:
        """No parameters, and a state in which no code was used yet."""
        return {}, Use(jnp.zeros(codes), jnp.float32(jnp.inf))

    def bounded(self, vectors: Float[Array | np.ndarray, "*N D"]) -> Float[Array, "*N D"]:
        """Vectors where rounding gives levels: equation 1, whole numbers around 0."""
        levels = jnp.asarray(self.levels, jnp.float32)
        half = (levels - 1) * (1 + EPSILON) / 2
        offset = jnp.where(levels % 2 == 0, 0.5, 0.0)
        # An even number of levels has none at 0; the shift keeps 0 where it was.
        shift = jnp.arctanh(offset / half)
        return jnp.tanh(jnp.asarray(vectors, jnp.float32) + shift) * half - offset

    def encode(
        self, params: Any, state: Use, vectors: Float[Array | np.ndarray, "*N D"]
    ) -> Int[Array, "*N"]:
        """The grid points' numbers in mixed radix, the first number of a vector the fastest."""
        digits = jnp.round(self.bounded(vectors)) + self._middle
        return jnp.sum(digits * self._radix, axis=-1).astype(jnp.int32)

    def vectors(
        self, params: Any, state: Use, ids: Int[Array | np.ndarray, "*N"]
    ) -> Float[Array, "*N D"]:
        """Grid points, in [-1, 1]."""
        radix, levels = self._radix.astype(np.int32), np.asarray(self.levels, np.int32)
        digits = jnp.asarray(ids)[..., None] // radix % levels
        return (digits - self._middle) / jnp.asarray(self._middle, jnp.float32)

    def quantise(
        self,
        training: CodebookTraining,
        params: Any,
        state: Use,
        vectors: Float[Array, "b h w D"],
        rows: Int[Array | np.ndarray, " b"],
        batch: int,
        key: Key[Array, ""],
        whole: Any = None,
    ) -> Quantised:
        """Rounded vectors with a gradient through the bound; there is no loss."""
        bounded = self.bounded(vectors) / jnp.asarray(self._middle, jnp.float32)
        ids = self.encode(params, state, vectors)
        points = self.vectors(params, state, ids)
        loss = jnp.zeros(len(vectors))
        hits = hits_of(ids, math.prod(self.levels))
        return Quantised(straight_through(bounded, points), loss, {}, hits)

    def finish(
        self, training: CodebookTraining, params: Any, state: Use, aux: Any
    ) -> tuple[Any, Use, dict[str, Array]]:
        """The averages of use after the batch."""
        counts = training.decay * state.counts + (1 - training.decay) * aux
        return params, state._replace(counts=counts), use_metrics(counts, aux)

    @property
    def _middle(self) -> np.ndarray:
        """The digit of the level at or just above 0."""
        return np.asarray(self.levels, np.int32) // 2

    @property
    def _radix(self) -> np.ndarray:
        """What a digit counts."""
        return np.cumprod([1, *self.levels[:-1]]).astype(np.float32)
