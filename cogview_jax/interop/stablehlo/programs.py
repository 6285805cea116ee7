"""The programs of an export, as functions of named arrays that any runner can make.

A program takes its weights (part -> name -> array, see `weights`), its inputs by name and, where it
goes on from one, a state by name; it gives its outputs by name. Everything is an array of numpy's
types: random numbers come from seeds, and settings are values a row.

Legend: B rows, P longest prompt, G rows and columns of codes, S side of an image in pixels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cogview_jax.interop.stablehlo.weights import NamedWeights
from cogview_jax.models.attention import KeyValues
from cogview_jax.models.sparse_attention import PivotCache
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.random_key import random_key
from cogview_jax.sampling.decode import Sequences, decode, fold_keys, generate, prefill
from cogview_jax.sampling.engine import Span
from cogview_jax.sampling.filters import RowSettings, settings_of
from cogview_jax.tokenizers.codecs.codec import Codec, CodecConfig, decode_codes, encode_images
from cogview_jax.tokenizers.layout import Layout, left_padded

#: The end of the names of programs that compute guidance, which takes twice as many rows.
GUIDED = "_guided"

Inputs = Mapping[str, jax.Array]
Shapes = Mapping[str, jax.ShapeDtypeStruct]


@dataclass(frozen=True)
class Program:
    """A program to be exported.

    Attributes:
        function: (weights, inputs) -> outputs, or (weights, inputs, state) -> outputs.
        weights: the parts whose weights it takes.
        inputs: the shape and type of every input.
        state: those of the arrays of a state, which it uses up; None where it takes none.
    """

    function: Callable[..., Any]
    weights: tuple[str, ...]
    inputs: Shapes
    state: Shapes | None = None


@dataclass(frozen=True)
class CodecPrograms:
    """The image tokenizer's programs.

    Attributes:
        encoder, decoder: the module, in the types that either computes in.
        weights: those of the codec.
        rows: B.
    """

    encoder: Codec
    decoder: Codec
    weights: NamedWeights
    rows: int

    @property
    def all(self) -> dict[str, Program]:
        """encode: "images" uint8 [B, S, S, 3] -> "codes" int32 [B, G, G]. decode: back."""
        config: CodecConfig = self.encoder.config
        images = jax.ShapeDtypeStruct((self.rows, *[config.image_size] * 2, 3), jnp.uint8)
        codes = jax.ShapeDtypeStruct((self.rows, config.grid, config.grid), jnp.int32)
        return {
            "encode": Program(self.encode, ("codec",), {"images": images}),
            "decode": Program(self.decode, ("codec",), {"codes": codes}),
        }

    def encode(self, weights: Any, inputs: Inputs) -> dict[str, jax.Array]:
        """Images to their codes."""
        return {"codes": encode_images(self.encoder, *self._parts(weights), inputs["images"])}

    def decode(self, weights: Any, inputs: Inputs) -> dict[str, jax.Array]:
        """Codes to their images."""
        return {"images": decode_codes(self.decoder, *self._parts(weights), inputs["codes"])}

    def _parts(self, weights: Any) -> tuple[Any, Any]:
        tree = self.weights.tree(weights["codec"])
        state = self.encoder.config.quantiser.State
        return tree["params"], state(**tree["codebook"])


@dataclass(frozen=True)
class TransformerPrograms:
    """The transformer's programs.

    Attributes:
        model: whose implementation is the same on every platform.
        layout: of its sequences.
        weights: those of the transformer.
        rows: B.
        codec: decodes what `text_to_image` has sampled, where there is an image tokenizer.
        guide: the programs compute guidance; the state then has 2 B rows, of which the second half
            are those of the first without their texts.
    """

    model: Transformer
    layout: Layout
    weights: NamedWeights
    rows: int
    codec: CodecPrograms | None = None
    guide: bool = False

    @property
    def all(self) -> dict[str, Program]:
        """prefill: a prompt to a state. decode_step: a state to the next token. text_to_image: a
        prompt to codes and image, where that is the layout's task.
        """
        prompt = self._inputs(int32=("tokens", "positions"), bool=("valid",), width=self._length)
        chosen = self._inputs(uint32=("seed", "prompt_hash", "index"))
        settings = self._inputs(float32=("temperature", "top_p", "guidance"), int32=("top_k",))
        given = prompt | chosen
        parts: tuple[str, ...] = ("transformer",)
        state = jax.eval_shape(self.prefill, {"transformer": self.weights.shapes}, given)
        found = {
            "prefill": Program(self.prefill, parts, given),
            "decode_step": Program(self.decode_step, parts, settings, state["state"]),
        }
        if self.layout.task == "text_to_image":
            parts += ("codec",) if self.codec else ()
            found["text_to_image"] = Program(self.text_to_image, parts, given | settings)
        end = GUIDED if self.guide else ""
        return {name + end: program for name, program in found.items()}

    @property
    def span(self) -> Span:
        """What is sampled: the image's codes, or the text of a caption."""
        kind = self.layout.last_part.kind
        return Span.of_image(self.layout) if kind == "image" else Span.of_text(self.layout)

    def text_to_image(self, weights: Any, inputs: Inputs) -> dict[str, jax.Array]:
        """Prompts to the codes of their images, int32 [B, G, G], and to "images" if there can be.

        Inputs as of `prefill` and `decode_step`.
        """
        tokens, valid, positions, keys = self._prompts(inputs)
        codes = generate(
            self.weights.tree(weights["transformer"]),
            tokens,
            valid,
            keys,
            _settings(inputs),
            positions,
            model=self.model,
            count=self.span.count,
            first=self.span.first,
            last=self.span.last,
            guide=self.guide,
        )
        grid = self.layout.last_part.grid
        found = {"codes": codes[: self.rows].reshape(self.rows, grid, grid)}
        return found | self.codec.decode(weights, found) if self.codec else found

    def prefill(self, weights: Any, inputs: Inputs) -> dict[str, Any]:
        """Prompts to the "state" that `decode_step` goes on from.

        tokens, positions: int32 [B, P], the ids of the prompts, which end together, and their
        positions. valid: bool [B, P], False on the padding in front. seed, prompt_hash, index:
        uint32 [B], which decide the random numbers (`sampling.decode.fold_keys`).
        """
        tokens, valid, positions, keys = self._prompts(inputs)
        sequences = prefill(
            self.weights.tree(weights["transformer"]),
            tokens,
            valid,
            keys,
            positions,
            model=self.model,
            count=self.span.count,
            first=self.span.first,
        )
        return {"state": _as_state(sequences)}

    def decode_step(self, weights: Any, inputs: Inputs, state: Inputs) -> dict[str, Any]:
        """A state to "tokens", the next id of each row, int32 [B], and the "state" after it.

        temperature, top_p, guidance: float32 [B]. top_k: int32 [B].
        """
        sequences, tokens = decode(
            self.weights.tree(weights["transformer"]),
            self._as_sequences(state),
            _settings(inputs),
            model=self.model,
            count=1,
            first=self.span.first,
            last=self.span.last,
            guide=self.guide,
        )
        return {"tokens": tokens[: self.rows, 0], "state": _as_state(sequences)}

    @property
    def _length(self) -> int:
        return self.span.prompt

    def _inputs(self, width: int = 0, **names: tuple[str, ...]) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of inputs [B], or [B, width], of the types under which their names stand."""
        shape = (self.rows, width) if width else (self.rows,)
        return {
            name: jax.ShapeDtypeStruct(shape, np.dtype(dtype))
            for dtype, of_type in names.items()
            for name in of_type
        }

    def _prompts(self, inputs: Inputs) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Tokens, valid, positions and keys; twice as many rows of each where there is guidance."""
        tokens, valid, positions = (inputs[name] for name in ("tokens", "valid", "positions"))
        roots = jax.vmap(random_key)(inputs["seed"])
        keys = fold_keys(roots, inputs["prompt_hash"], inputs["index"])
        if not self.guide:
            return tokens, valid, positions, keys
        bare = self.layout.tokens({"text": []})
        more, there = left_padded([bare] * self.rows, tokens.shape[1])
        places, _ = left_padded([np.arange(len(bare))] * self.rows, tokens.shape[1])
        return (
            jnp.concatenate([tokens, more]),
            jnp.concatenate([valid, there]),
            jnp.concatenate([positions, places]),
            jnp.concatenate([keys, keys]),
        )

    def _as_sequences(self, state: Inputs) -> Sequences:
        """The `Sequences` of a flat state."""
        kind = PivotCache if self.model.config.sparse else KeyValues
        cache: Any = tuple(
            kind(*(state[f"cache.{layer}.{name}"] for name in kind._fields))
            for layer in range(self.model.config.layers)
        )
        keys = jax.random.wrap_key_data(state["keys"], impl="threefry2x32")
        given = {name: state[name] for name in Sequences._fields if name in state}
        return Sequences(**given | {"keys": keys, "cache": cache})


def _as_state(sequences: Sequences) -> dict[str, jax.Array]:
    """`Sequences` as a flat dict of arrays of numpy's types."""
    state = sequences._asdict()
    cache = state.pop("cache")
    layers = {
        f"cache.{layer}.{name}": array
        for layer, arrays in enumerate(cache)
        for name, array in arrays._asdict().items()
    }
    return state | {"keys": jax.random.key_data(state["keys"])} | layers


def _settings(inputs: Inputs) -> RowSettings:
    return settings_of(*(inputs[name] for name in ("temperature", "top_k", "top_p", "guidance")))
