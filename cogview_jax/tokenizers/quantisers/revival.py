"""Moving codes that nobody uses onto vectors of the batch: the remedy for a collapsing codebook.

It is also how a fresh codebook gets its first values (Dhariwal et al. 2020, arXiv 2005.00341,
section 3.1, restart codes at random).

Legend: N vectors of a batch, b rows of a part of it, h w rows and columns of codes, K codes, D
width of a code.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key


class Candidates(NamedTuple):
    """Vectors that codes may move onto, as sums over the parts of a batch.

    vectors [K, D]: a random vector of the batch for each code; a part of the batch has zeros for
    candidates from other parts. worthwhile [K]: 1 where the candidate is farther from its present
    code than the average, else 0: codes go where they are missed, and not into the crowd, such as
    plain background.
    """

    vectors: jax.Array
    worthwhile: jax.Array


def sample_candidates(
    key: Key[Array, ""],
    codes: Float[Array, "K D"],
    vectors: Float[Array, "b h w D"],
    ids: Int[Array, "b h w"],
    error: Float[Array, ""],
    rows: Int[Array | np.ndarray, " b"],
    batch: int,
) -> Candidates:
    """The candidates that lie in some rows of a batch.

    They are sampled from the whole batch. A part of it has those that lie in its own rows and
    zeros in place of the others, so that the sum over all parts has every candidate once.

    Args:
        key: the same for all parts of a batch.
        codes: in the space of `vectors`.
        vectors: of the part.
        ids: their codes.
        error: the average squared distance between a vector and its code.
        rows: the numbers of the part's rows within the whole batch, in ascending order.
        batch: how many rows the whole batch has.
    """
    size, width = codes.shape
    flat, flat_ids = vectors.reshape(-1, width), ids.reshape(-1)
    cells = flat_ids.size // ids.shape[0]
    chosen = jax.random.randint(key, (size,), 0, batch * cells)
    numbers = (rows[:, None] * cells + jnp.arange(cells)).reshape(-1)
    place = jnp.minimum(jnp.searchsorted(numbers, chosen), len(numbers) - 1)
    here = numbers[place] == chosen
    distance = jnp.sum((flat - codes[flat_ids]) ** 2, axis=1)
    return Candidates(
        jnp.where(here[:, None], flat[place], 0),
        jnp.where(here & (distance[place] > error), 1.0, 0.0),
    )


def unused(
    counts: Float[Array, " K"], worthwhile: Float[Array, " K"], vectors: Array, threshold: float
) -> tuple[Bool[Array, " K"], Array]:
    """Which codes move, and what their count becomes.

    A moved code starts at twice the threshold: light, so that the vectors it wins decide where it
    goes.

    Args:
        counts: the moving averages of how many vectors of a batch each code wins.
        worthwhile: see `Candidates`.
        vectors: N, how many vectors the batch had; the fair share of a code is N / K.
        threshold: the share below which a code counts as unused.
    """
    share = vectors / counts.shape[0]
    return (counts < threshold * share) & (worthwhile > 0), 2 * threshold * share


def moving_error(before: Float[Array, ""], batch: Float[Array, ""], decay: float) -> Array:
    """The moving average of the squared distance to a code; infinite `before` the first batch."""
    return jnp.where(jnp.isinf(before), batch, decay * before + (1 - decay) * batch)
