"""CLIP (Radford et al. 2021, arXiv 2103.00020): images and texts as vectors that can be compared.

Both towers are transformers with layer norms in front of attention and MLP. The image tower reads
patches behind a class token, whose output is the embedding; the text tower is causal, and the
output at the end token is the embedding. A linear map takes each to the common space. The
functions compute what CLIPModel of Hugging Face's transformers computes; the weights are given
(`interop.clip` reads them from files).

Legend: b batch, s pixels along a side, t tokens, d width of a tower, n heads, k head dim, e width
of the embeddings.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt8
from PIL import Image

from cogview_jax.runtime.errors import InputError

#: Of the pixels of the training data, by channel, in the range [0, 1].
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
#: A config with this end token is older than the setting itself, and its value means nothing: the
#: end token is the largest id of a text.
LARGEST_ID = 2


def _quick_gelu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


#: Name in the config -> the function between the two linear maps of an MLP.
ACTIVATIONS: MappingProxyType[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {"quick_gelu": _quick_gelu, "gelu": functools.partial(jax.nn.gelu, approximate=False)}
)


@dataclass(frozen=True)
class TowerConfig:
    """What the shapes of a tower's weights do not tell.

    Attributes:
        num_heads: attention heads.
        activation: a name in `ACTIVATIONS`.
        epsilon: added to the variance in layer norms.
    """

    num_heads: int
    activation: str
    epsilon: float


@dataclass(frozen=True)
class ClipConfig:
    """What the shapes of the weights do not tell.

    Attributes:
        image: of the image tower.
        text: of the text tower.
        image_size: pixels along a side of an image.
        end_token: the id at which a text is pooled (its first place), or `LARGEST_ID`.
    """

    image: TowerConfig
    text: TowerConfig
    image_size: int
    end_token: int


@flax.struct.dataclass
class ClipWeights:
    """The weights of CLIP, a pytree of float32 arrays.

    config: it is no part of the pytree. image, text: nested dicts, as `image_shapes` and
    `text_shapes` in `interop.clip` list them; the layers of a tower are stacked along the first
    axis.
    """

    config: ClipConfig = flax.struct.field(pytree_node=False)
    image: dict[str, Any]
    text: dict[str, Any]

    @property
    def max_tokens(self) -> int:
        """The tokens of the longest text."""
        return self.text["positions"].shape[0]


@jax.jit
def image_embeddings(
    weights: ClipWeights, images: Float[Array | np.ndarray, "b s s 3"]
) -> Float32[Array, "b e"]:
    """The embeddings of images, float32 [b, e], not of unit length.

    Args:
        weights: of both towers.
        images: [b, s, s, 3], as `clip_pixels` gives them.

    Raises:
        InputError: s is not the image size of the model.
    """
    size, tower = weights.config.image_size, weights.image
    if images.shape[1:] != (size, size, 3):
        raise InputError(
            f"images of shape {list(images.shape[1:])}: this CLIP reads {[size, size, 3]}"
        )
    with jax.default_matmul_precision("highest"):
        x = _patches(jnp.asarray(images, jnp.float32), tower["patches"])
        first = jnp.broadcast_to(tower["class_token"], (x.shape[0], 1, x.shape[2]))
        x = jnp.concatenate([first, x], axis=1) + tower["positions"]
        config = weights.config.image
        x = _layer_norm(x, tower["first_norm"], config.epsilon)
        x = _encode(x, tower["layers"], config)[:, 0]
        return _layer_norm(x, tower["last_norm"], config.epsilon) @ tower["projection"]


@jax.jit
def text_embeddings(
    weights: ClipWeights, ids: Int32[Array | np.ndarray, "b t"]
) -> Float32[Array, "b e"]:
    """The embeddings of texts, float32 [b, e], not of unit length.

    Args:
        weights: of both towers.
        ids: tokens [b, t]; what stands behind the end token does not count, since attention is
            causal.

    Raises:
        InputError: t is larger than the model has positions.
    """
    config, tower = weights.config, weights.text
    length = ids.shape[1]
    if length > weights.max_tokens:
        raise InputError(f"texts of {length} tokens: this CLIP reads at most {weights.max_tokens}")
    end = jnp.argmax(ids if config.end_token == LARGEST_ID else ids == config.end_token, axis=1)
    with jax.default_matmul_precision("highest"):
        x = tower["tokens"][ids] + tower["positions"][:length]
        x = _encode(x, tower["layers"], config.text, jnp.tri(length, dtype=bool))
        x = _layer_norm(x[jnp.arange(len(ids)), end], tower["last_norm"], config.text.epsilon)
        return x @ tower["projection"]


@jax.jit
def normalise(embeddings: Float[Array | np.ndarray, "b e"]) -> Float[Array, "b e"]:
    """Embeddings of unit length, [b, e]."""
    x = jnp.asarray(embeddings)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def clip_pixels(image: UInt8[np.ndarray, "h w 3"], size: int) -> Float32[np.ndarray, "s s 3"]:
    """An image as CLIP reads it: uint8 [h, w, 3] -> float32 [size, size, 3].

    Pillow's bicubic filter takes the shorter side to `size` and rounds to 8 bits, the centre is
    cut out, and pixels are normalised by `MEAN` and `STD`: CLIPImageProcessor of transformers (the
    one that uses Pillow), to the last bit.
    """
    height, width = image.shape[:2]
    shorter = min(height, width)
    rows, columns = (int(size * side / shorter) for side in (height, width))
    resized = Image.fromarray(image).resize((columns, rows), Image.Resampling.BICUBIC)
    top, left = (rows - size) // 2, (columns - size) // 2
    cut = np.asarray(resized)[top : top + size, left : left + size]
    scaled = (cut.astype(np.float64) * (1 / 255)).astype(np.float32)
    return (scaled - np.array(MEAN, np.float32)) / np.array(STD, np.float32)


def _patches(
    images: Float[Array, "b s s 3"], kernel: Float[Array, "p p 3 d"]
) -> Float[Array, "b t d"]:
    """The convolution whose stride is its kernel's side, as a product; what is over is left out."""
    side = kernel.shape[0]
    count = images.shape[1] // side
    x = images[:, : count * side, : count * side]
    x = x.reshape(-1, count, side, count, side, 3).swapaxes(2, 3)
    return x.reshape(-1, count**2, side * side * 3) @ kernel.reshape(side * side * 3, -1)


def _encode(
    x: Float[Array, "b t d"],
    layers: dict[str, Any],
    config: TowerConfig,
    mask: Bool[Array, "t t"] | None = None,
) -> Float[Array, "b t d"]:
    """All layers of a tower, whose weights are stacked."""

    def layer(
        x: Float[Array, "b t d"], weights: dict[str, Any]
    ) -> tuple[Float[Array, "b t d"], None]:
        y = _layer_norm(x, weights["norm1"], config.epsilon)
        x = x + _attention(y, weights, config.num_heads, mask)
        y = _layer_norm(x, weights["norm2"], config.epsilon)
        y = ACTIVATIONS[config.activation](_linear(y, weights["expand"]))
        return x + _linear(y, weights["contract"]), None

    return jax.lax.scan(layer, x, layers)[0]


def _attention(
    x: Float[Array, "b t d"],
    weights: dict[str, Any],
    num_heads: int,
    mask: Bool[Array, "t t"] | None,
) -> Float[Array, "b t d"]:
    """softmax(q k^T / sqrt(head dim)) v of each head; where `mask` is False nothing is read."""
    q, k, v = (
        _linear(x, weights[name]).reshape(*x.shape[:2], num_heads, -1)
        for name in ("query", "key", "value")
    )
    logits = jnp.einsum("bqnk,bsnk->bnqs", q, k) * q.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    y = jnp.einsum("bnqs,bsnk->bqnk", jax.nn.softmax(logits), v)
    return _linear(y.reshape(x.shape), weights["out"])


def _linear(x: Float[Array, "*b i"], weights: dict[str, Any]) -> Float[Array, "*b o"]:
    return x @ weights["kernel"] + weights["bias"]


def _layer_norm(
    x: Float[Array, "*b d"], weights: dict[str, Any], epsilon: float
) -> Float[Array, "*b d"]:
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + epsilon)
    return x * weights["scale"] + weights["bias"]
