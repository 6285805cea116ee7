"""What a quantiser is: vectors become ids of codes, and ids become vectors again.

Every product here is taken in float32 at the highest precision. Accelerators round what they
multiply to bfloat16 or TF32 unless they are told otherwise, and codes that are nearly as near as
the nearest would win there: the codes of an image would depend on the machine.

Legend: N vectors of a batch, b rows of a part of it, h w rows and columns of codes, K codes, D
width of a code.
"""

import abc
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from cogview_jax.runtime.config import Tagged, require_range

#: The width of codes of which a large codebook is used well (LlamaGen, arXiv 2406.06525).
NARROW = 8


@dataclass(frozen=True)
class CodebookTraining:
    """How a codebook learns, whatever the quantiser.

    Attributes:
        commitment: weight of the squared distance between the encoder's vectors and their codes.
        decay: of the moving averages that the quantiser keeps.
        revive_below: a code that is used less than this share of the mean use is moved onto a
            vector of the batch; 0 never moves one.
    """

    commitment: float = 0.25
    decay: float = 0.99
    revive_below: float = 0.03

    def __post_init__(self) -> None:
        require_range(self, "commitment", at_least=0)
        require_range(self, "decay", "revive_below", at_least=0, below=1)


class Quantised(NamedTuple):
    """What a quantiser makes of the vectors of some rows, for training.

    vectors [b, h, w, D]: what the decoder reads, with a gradient for the encoder. loss [b]: of each
    row. metrics: name -> [b]. aux: a pytree of sums over the rows, which `Quantiser.finish` takes.
    """

    vectors: jax.Array
    loss: jax.Array
    metrics: dict[str, jax.Array]
    aux: Any


@dataclass(frozen=True, kw_only=True)
class Quantiser(Tagged, abc.ABC):
    """A family of quantisers: the section `model.quantiser` of a config.

    Each kind is a subclass; defining it makes its `kind` known to configs. What it learns by
    gradients are parameters, and whatever else it keeps is a state; both come in and go out as
    values. A section without `kind` is the paper's choice, `moving_average`.

    Attributes:
        kind: which quantiser; a subclass fixes it, as `Literal`.
    """

    default_kind: ClassVar[str | None] = "moving_average"
    #: The NamedTuple of the state; a bundle holds its fields.
    State: ClassVar[type]

    kind: str

    def check(self, codes: int, width: int) -> None:
        """InputError where the quantiser cannot have `codes` codes of `width` numbers."""

    def remedies(self, training: CodebookTraining, width: int) -> list[str]:
        """What may help where few of the codes are used: settings of a config, likeliest first.

        Args:
            training: how the codebook learns now.
            width: `model.code_width` now.
        """
        others = [kind for kind in ("cosine", "fsq") if kind != self.kind]
        return [f"model.quantiser.kind {' or '.join(others)}"]

    def same_codes(self, other: "Quantiser") -> bool:
        """Whether weights of one serve the other: both are of one kind, however they learn."""
        return self.kind == other.kind

    @abc.abstractmethod
    def init(self, key: Key[Array, ""], codes: int, width: int) -> tuple[dict[str, Any], Any]:
        """The parameters, boxed with logical axis names ({} for none), and the state."""

    @abc.abstractmethod
    def encode(
        self, params: Any, state: Any, vectors: Float[Array | np.ndarray, "*N D"]
    ) -> Int[Array, "*N"]:
        """Encoder outputs [..., D] -> ids of codes, int32 [...]."""

    @abc.abstractmethod
    def vectors(
        self, params: Any, state: Any, ids: Int[Array | np.ndarray, "*N"]
    ) -> Float[Array, "*N D"]:
        """Ids [...] -> what the decoder reads, float32 [..., D]."""

    def batch_sums(self, params: Any, vectors: Float[Array, "b h w D"]) -> Any:
        """What `quantise` has to know of all rows of a batch, as a pytree of sums over some rows.

        Most losses are sums over rows, and there is nothing to know: ().

        Args:
            params: the quantiser's parameters.
            vectors: the encoder's, of b rows.
        """
        return ()

    @abc.abstractmethod
    def quantise(
        self,
        training: CodebookTraining,
        params: Any,
        state: Any,
        vectors: Float[Array, "b h w D"],
        rows: Int[Array | np.ndarray, " b"],
        batch: int,
        key: Key[Array, ""],
        whole: Any = None,
    ) -> Quantised:
        """What a training step needs of some rows.

        Args:
            training: weights and rates.
            params: the quantiser's parameters.
            state: its state before the step.
            vectors: the encoder's, of b rows.
            rows: the numbers of these rows within the whole batch, in ascending order.
            batch: how many rows the whole batch has.
            key: of the step, the same for all parts of a batch.
            whole: `batch_sums` of the whole batch; None where the rows are the whole batch.
        """

    @abc.abstractmethod
    def finish(
        self, training: CodebookTraining, params: Any, state: Any, aux: Any
    ) -> tuple[Any, Any, dict[str, Array]]:
        """Parameters and state after a step, and metrics of it.

        Args:
            training: weights and rates.
            params: the quantiser's parameters after the update.
            state: its state before the step.
            aux: `Quantised.aux`, summed over the whole batch.
        """


def nearest(
    codes: Float[Array | np.ndarray, "K D"], vectors: Float[Array | np.ndarray, "*N D"]
) -> Int[Array, "*N"]:
    """Ids of the nearest codes: codes [K, D], vectors [..., D] -> int32 [...].

    Squared distance in its expanded form, without the vectors' own norm: it moves no minimum. It is
    computed in float32, whatever the types of both.
    """
    codes, vectors = jnp.asarray(codes, jnp.float32), jnp.asarray(vectors, jnp.float32)
    distances = jnp.sum(codes**2, axis=1) - product(2 * vectors, codes.T)
    return jnp.argmin(distances, axis=-1).astype(jnp.int32)


def revival(training: CodebookTraining) -> list[str]:
    """The setting of `CodebookTraining` that moves unused codes more often than now."""
    if not training.revive_below:
        return [f"loss.revive_below = {CodebookTraining.revive_below}"]
    return [f"loss.revive_below above {training.revive_below:g}"]


def narrow(width: int) -> list[str]:
    """The setting that gives codes fewer numbers; nothing where they have few already."""
    return [f"model.code_width below {width}, such as {NARROW}"] if width > NARROW else []


def straight_through(
    vectors: Float[Array | np.ndarray, "*N"], quantised: Float[Array | np.ndarray, "*N"]
) -> Float[Array, "*N"]:
    """`quantised` in the forward pass, the gradient of `vectors` in the backward pass."""
    vectors, quantised = jnp.asarray(vectors), jnp.asarray(quantised)
    return vectors + jax.lax.stop_gradient(quantised - vectors)


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b at the highest precision of the device: [..., N], [N, M] -> [..., M]."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def tanh_uniform(key: Key[Array, ""], codes: int, width: int) -> Float[Array, "K D"]:
    """Codes nobody has used yet: Xavier-uniform with the gain of tanh, 5/3, as in the release."""
    bound = 5 / 3 * (6 / (codes + width)) ** 0.5
    return jax.random.uniform(key, (codes, width), jnp.float32, -bound, bound)


def codebook_parameter(codes: jax.Array) -> Any:
    """Codes [K, D] as a parameter with logical axis names."""
    return nn.LogicallyPartitioned(codes, ("codes", "code_width"))


def hits_of(ids: Int[Array | np.ndarray, "*N"], codes: int) -> Float[Array, " K"]:
    """How many of the ids name each of the codes."""
    return jax.nn.one_hot(jnp.ravel(jnp.asarray(ids)), codes, dtype=jnp.float32).sum(0)


def use_metrics(counts: Float[Array, " K"], hits: Float[Array, " K"]) -> dict[str, Array]:
    """How well a codebook is used.

    codebook_usage: the share of codes whose moving average of use is above 1% of the mean.
    dead_codes: how many are not. perplexity: of the codes of the batch.
    """
    share = hits / hits.sum()
    entropy = -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.maximum(share, 1e-30)), 0))
    used = counts > 0.01 * jnp.mean(counts)
    return {
        "codebook_usage": jnp.mean(used),
        "dead_codes": jnp.sum(~used).astype(jnp.float32),
        "perplexity": jnp.exp(entropy),
    }
