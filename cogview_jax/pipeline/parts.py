"""The parts of a bundle in memory, and what each does alone: images to codes and back, logits."""

import contextlib
import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cogview_jax.checkpoints.bundle_parts import CodecPart, TransformerPart
from cogview_jax.models.conventions import Conventions
from cogview_jax.models.implementation import choose_implementation
from cogview_jax.models.layer_params import stacked_arrays, unstack_arrays
from cogview_jax.models.quantization import is_quantized, quantized_arrays
from cogview_jax.models.transformer import logits_of, whole_forward, without_blocks
from cogview_jax.runtime.compile_ahead import compile_ahead, only_device
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.precision import INT8, policy_of
from cogview_jax.sampling.batching import fitted, in_few_shapes, rows_that_fit
from cogview_jax.sampling.engine import Engine
from cogview_jax.sampling.options import SamplingConfig
from cogview_jax.tokenizers.codecs.codec import Codec, decode_codes, encode_images
from cogview_jax.tokenizers.layout import Layout, LayoutConfig, make_layout
from cogview_jax.tokenizers.text import TextTokenizer

#: Rows of logits computed at a time: one takes a quarter of a gigabyte of a model of usual size.
LOGITS = 8


#: What a task on captions and images needs of a bundle.
EVERY_PART = ("transformer", "text", "codec")


def need_parts(name: str, have: Collection[str], *needed: str) -> None:
    """InputError where some of the parts codec, text and transformer are not there.

    Args:
        name: of the bundle, for the message.
        have: the parts that are there.
        needed: those that have to be.
    """
    if missing := [part for part in needed if part not in have]:
        there = ", ".join(sorted(have)) or "no part"
        raise InputError(
            f"{name} has no {' and no '.join(missing)}, which this needs; it has {there}"
        )


def need_task(name: str, trained_for: str, task: str) -> None:
    """InputError where the transformer of the bundle `name` was trained for another task."""
    if trained_for != task:
        raise InputError(
            f"the transformer of {name} was trained for {trained_for}, this needs {task}"
        )


class Parts:
    """Text tokenizer, codec and transformer, each optional, in the types they compute in.

    Attributes:
        policy: the types of the transformer's arithmetic.
        text: the text tokenizer.
        codec: the codec's module, which computes in `policy`'s type.
        engine: samples from the transformer.
    """

    codec: Codec
    engine: Engine

    def __init__(
        self,
        codec: CodecPart | None,
        text: TextTokenizer | None,
        transformer: TransformerPart | None,
        dtype: Any = jnp.float32,
        encode_dtype: Any = jnp.float32,
        name: str = "the bundle",
    ):
        """Puts the parts together; see `CogView`."""
        self._name = name
        policy = self.policy = policy_of(dtype)
        self.text, self.codec_part, self.transformer = text, codec, None
        if codec is not None:
            self.codec = codec.config.module(policy.compute)
            encoder = codec.config.module(policy_of(encode_dtype).compute)
            self._encode = jax.jit(lambda p, c, images: encode_images(encoder, p, c, images))
            self._decode = jax.jit(lambda p, c, codes: decode_codes(self.codec, p, c, codes))
        if transformer is not None:
            layers = transformer.params
            if not isinstance(layers["blocks"], tuple):
                arrays = stacked_arrays(layers)
                layers = unstack_arrays(quantized_arrays(arrays) if policy.int8_kernels else arrays)
            policy = self.policy = replace(policy, int8_kernels=is_quantized(layers))
            # The only form of the weights that is kept.
            self.transformer = replace(transformer, params=layers)
            layout = make_layout(transformer.layout, transformer.vocabulary)
            implementation = choose_implementation(
                transformer.config,
                policy,
                transformer.implementation,
                devices=len(_devices(layers["word_embedding"])),
            )
            model = transformer.model.clone(policy=policy, implementation=implementation)
            self.engine = Engine(model, layers, layout)

    @property
    def names(self) -> set[str]:
        """Which there are of codec, text and transformer."""
        have = {"codec": self.codec_part, "text": self.text, "transformer": self.transformer}
        return {name for name, part in have.items() if part is not None}

    def need(self, *names: str) -> None:
        """InputError that names what is missing of the parts codec, text and transformer."""
        need_parts(self._name, self.names, *names)

    def need_task(self, task: str) -> None:
        """InputError where the transformer was trained for another task than `task`."""
        need_task(self._name, self.layout.task, task)

    @property
    def layout(self) -> Layout:
        """What the transformer's sequences are made of."""
        return self.engine.layout

    @property
    def tokenizer(self) -> TextTokenizer:
        """The text tokenizer; InputError where there is none."""
        self.need("text")
        assert self.text is not None
        return self.text

    @property
    def layout_config(self) -> LayoutConfig:
        """What the config said of the layout."""
        assert self.transformer is not None, "need('transformer') comes first"
        return self.transformer.layout

    def sampling_over(self, usual: SamplingConfig) -> SamplingConfig:
        """The settings that the transformer's bundle recommends, over the `usual` of its task."""
        self.need("transformer")
        assert self.transformer is not None
        return self.transformer.sampling.over(usual)

    @property
    def example_prompts(self) -> tuple[str, ...]:
        """Prompts that the transformer's bundle names as examples."""
        return () if self.transformer is None else self.transformer.prompts

    @property
    def conventions(self) -> Conventions:
        """Whether the transformer is used as ours are, or as the CogView release does."""
        return self.engine.model.config.conventions

    def encode(self, images: np.ndarray, grid: int | None = None) -> np.ndarray:
        """uint8 images [b, h, w, 3] -> codes int32 [b, rows, columns].

        Args:
            images: their sides are multiples of the codec's downsampling.
            grid: the rows and columns of codes that are expected; None for any.

        Raises:
            InputError: the images are of another type or size.
        """
        self.need("codec")
        images, factor = np.asarray(images), self.codec.config.downsampling
        if grid is not None:
            fits = images.shape[1:] == (grid * factor, grid * factor, 3)
            expected = f"[b, {grid * factor}, {grid * factor}, 3]"
        else:
            fits = images.ndim == 4 and images.shape[3] == 3 and min(images.shape[1:3]) > 0
            fits = fits and not any(side % factor for side in images.shape[1:3])
            expected = f"[b, h, w, 3], h and w multiples of {factor}"
        if images.dtype != np.uint8 or not fits:
            raise InputError(f"encode got {images.dtype} {images.shape}, expected uint8 {expected}")
        pixels = math.prod(images.shape[1:3])
        return in_few_shapes(self.codes_of, images, self._images_that_fit(pixels))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes int32 [b, rows, columns] -> uint8 images [b, h, w, 3].

        Raises:
            InputError: they are no whole numbers, or beyond the codebook.
        """
        self.need("codec")
        codes, config = np.asarray(codes), self.codec.config
        fits = codes.ndim == 3 and min(codes.shape[1:]) > 0
        if codes.dtype.kind not in "iu" or not fits:
            raise InputError(
                f"decode got {codes.dtype} {codes.shape}, expected integers [b, rows, columns]"
            )
        if codes.size and not 0 <= codes.min() <= codes.max() < config.codebook:
            raise InputError(
                f"decode got codes from {codes.min()} to {codes.max()}, expected 0 to"
                f" {config.codebook - 1}"
            )
        return in_few_shapes(self.pixels_of, codes, self._decoded_at_a_time(*codes.shape[1:]))

    def decode_ahead(self, count: int) -> contextlib.AbstractContextManager[None]:
        """Compiles what `decode` runs for `count` whole images, while a block samples them."""
        part, grid = self._codec_part(), self.codec.config.grid
        if only_device(part.params) is None:
            return contextlib.nullcontext()
        rows = fitted(count, self._decoded_at_a_time(grid, grid))
        codes = np.zeros((rows, grid, grid), np.int32)
        return compile_ahead(self._decode, part.params, part.codebook, codes)

    def codes_of(self, images: np.ndarray) -> jax.Array:
        """Images uint8 [b, h, w, 3] of any size -> int32 [b, rows, columns], in one batch."""
        part = self._codec_part()
        return self._encode(part.params, part.codebook, images)

    def pixels_of(self, codes: np.ndarray) -> jax.Array:
        """Codes of the codebook, int [b, rows, columns] -> uint8 [b, h, w, 3], in one batch."""
        part = self._codec_part()
        return self._decode(part.params, part.codebook, codes.astype(np.int32))

    def _codec_part(self) -> CodecPart:
        self.need("codec")
        assert self.codec_part is not None
        return self.codec_part

    def _decoded_at_a_time(self, rows: int, columns: int) -> int:
        """Images of so many codes that the codec decodes at a time."""
        return self._images_that_fit(rows * columns * self.codec.config.downsampling**2)

    def _images_that_fit(self, pixels: int) -> int:
        """Images of so many pixels that the codec handles at a time.

        An image takes about three times what its largest layer has: as many values as pixels and
        channels.
        """
        return rows_that_fit(3 * 4 * pixels * self.codec.config.outer_channels)

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """int32 tokens [b, t] at positions 0..t-1 -> float32 [b, t, vocabulary]."""
        self.need("transformer")
        tokens, model = np.asarray(tokens), self.engine.model
        fits = tokens.ndim == 2 and 0 < tokens.shape[1] <= model.positions
        if not fits or tokens.dtype.kind not in "iu":
            raise InputError(
                f"logits got {tokens.dtype} {tokens.shape}, expected integers [b, t] with t from 1"
                f" to {model.positions}"
            )
        vocabulary = self.layout.vocabulary.size
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocabulary:
            raise InputError(
                f"logits got tokens from {tokens.min()} to {tokens.max()}, expected 0 to"
                f" {vocabulary - 1}"
            )
        if self.conventions.tensor_norm:
            return np.asarray(self._logits(tokens))  # every row has a say in what others become
        return in_few_shapes(self._logits, tokens, LOGITS)

    def _logits(self, tokens: np.ndarray) -> jax.Array:
        tokens, params, model = tokens.astype(np.int32), self.engine.params, self.engine.model
        positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
        hidden = whole_forward(model, params, jnp.asarray(tokens), jnp.asarray(positions))
        return logits_of(without_blocks(params), hidden, model=model)

    def describe(self) -> str:
        """The parts, their sizes, the task, the type of the arithmetic, and the devices."""
        lines, arrays = [], []
        if self.transformer is not None:
            model, layout = self.transformer.config, self.transformer.layout
            params = self.transformer.params
            arrays += jax.tree.leaves(params)
            lines.append(
                f"transformer: {layout.task}, {model.layers} layers of width {model.width},"
                f" {model.heads} heads, {_count(params):,} parameters; {layout.text_length}"
                f" text tokens, {layout.grid} x {layout.grid} codes"
            )
        if self.codec_part is not None:
            codec = self.codec_part.config
            arrays += jax.tree.leaves(self.codec_part.params)
            lines.append(
                f"codec: {codec.image_size} x {codec.image_size} pixels, {codec.grid} x"
                f" {codec.grid} codes of {codec.codebook:,},"
                f" {_count(self.codec_part.params):,} parameters"
            )
        if self.text is not None:
            lines.append(f"text: {len(self.text):,} tokens")
        devices = {device for array in arrays for device in _devices(array)}
        kinds = sorted({device.device_kind for device in devices})
        where = f" on {len(devices)} x {', '.join(kinds)}" if devices else ""
        in_8_bits = self.policy.int8_kernels and self.policy.name != INT8
        kernels = ", kernels int8" if in_8_bits else ""
        lines.append(f"arithmetic: {self.policy.name}{kernels}{where}")
        return "\n  ".join(["CogView", *lines])


def _count(params: Any) -> int:
    return sum(array.size for array in jax.tree.leaves(params))


def _devices(array: Any) -> set[jax.Device]:
    return array.devices() if isinstance(array, jax.Array) else {jax.local_devices()[0]}
