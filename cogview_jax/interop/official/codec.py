"""The official image tokenizer: a torch file with one flat state dict.

Its names may all begin with `module.`, judged from the first. The weights do not hold the size of
the images, nor the pixels' mean and deviation, which are the released ones.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cogview_jax.checkpoints.bundle import codec_shapes
from cogview_jax.checkpoints.bundle_parts import CodecPart
from cogview_jax.checkpoints.stored_tree import Deferred
from cogview_jax.interop.rules import (
    COLUMNS,
    CONVOLUTION,
    SAME,
    TRANSPOSED,
    Rule,
    required,
    to_ours,
    to_theirs,
)
from cogview_jax.interop.torch_format.file import read_torch, write_torch
from cogview_jax.interop.torch_format.pickle import Slot
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tokenizers.codecs.codec import CodecConfig
from cogview_jax.tokenizers.codecs.vqvae import VQVAEConfig
from cogview_jax.tokenizers.quantisers.moving_average import Codebook, MovingAverage

PREFIX = "module."
#: How often the released model halves an image.
LEVELS = 3


def rules(levels: int) -> tuple[Rule, ...]:
    """The table for an image tokenizer that halves the image so often.

    The codebook's moving average of the error is ours alone and not among them.
    """

    def layer(official: str, ours: str, kernel) -> tuple[Rule, Rule]:
        return (
            Rule(f"{official}.weight", f"params.{ours}.kernel", kernel),
            Rule(f"{official}.bias", f"params.{ours}.bias", SAME),
        )

    # Every second block is a ReLU, which has no weights.
    encoder = [
        layer(f"enc_b.blocks.{2 * level}", f"encoder_convs_{level}", CONVOLUTION)
        for level in range(levels)
    ]
    decoder = [
        layer(f"dec.blocks.{2 * level}", f"decoder_convs_{level}", TRANSPOSED)
        for level in range(levels)
    ]
    return (
        *(rule for pair in encoder for rule in pair),
        *layer(f"enc_b.blocks.{2 * levels}", "encoder_out", CONVOLUTION),
        Rule("quantize_t.embed", "codebook.codes", COLUMNS),
        Rule("quantize_t.cluster_size", "codebook.counts", SAME),
        Rule("quantize_t.embed_avg", "codebook.sums", COLUMNS),
        *(rule for pair in decoder for rule in pair),
        *layer(f"dec.blocks.{2 * levels}", "decoder_out", CONVOLUTION),
    )


@dataclass(frozen=True)
class OfficialCodec:
    """An official image tokenizer, opened: no tensor is read yet; names are without `prefix`."""

    file: Path
    prefix: str
    state: Mapping[str, Any]

    @classmethod
    def open(cls, file: Path | str) -> "OfficialCodec":
        """Opens the torch file.

        Raises:
            InputError: it is none, or some of its names lack the prefix that the first has.
        """
        state = read_torch(file)
        if not isinstance(state, dict) or not state:
            raise InputError(f"{file} holds no state dict")
        names = list(state)
        if not all(isinstance(name, str) for name in names):
            raise InputError(f"{file} holds no state dict: not all of its names are texts")
        prefix = PREFIX if names[0].startswith(PREFIX) else ""
        if without := [name for name in names if not name.startswith(prefix)]:
            raise InputError(
                f"{file} has {without[0]} without the prefix {prefix} of its first name {names[0]}"
            )
        stripped = (name.removeprefix(prefix) for name in names)
        return cls(Path(file), prefix, dict(zip(stripped, state.values(), strict=True)))

    @property
    def codes(self) -> int:
        """How many codes the codebook has."""
        return required(self.state, "quantize_t.embed", 2, str(self.file))[1]

    @property
    def levels(self) -> int:
        """How often the encoder halves the image: each of its convolutions but the last does."""
        convolutions = [n for n in self.state if re.fullmatch(r"enc_b\.blocks\.\d+\.weight", n)]
        return len(convolutions) - 1

    def part(self, grid: int) -> CodecPart:
        """The image tokenizer for images of `grid` x `grid` codes, its arrays `Deferred`.

        Raises:
            InputError: a tensor is missing, unknown or of another shape than the rest.
        """
        where = str(self.file)
        first = required(self.state, "enc_b.blocks.0.weight", 4, where)
        width, codes = required(self.state, "quantize_t.embed", 2, where)
        if self.levels < 1:
            raise InputError(f"{where} has one convolution in its encoder, expected at least two")
        config = VQVAEConfig(
            image_size=grid << self.levels,
            downsampling=1 << self.levels,
            channels=first[0],
            codebook=codes,
            code_width=width,
        )
        shapes = unbox(codec_shapes(config))
        error = shapes["codebook"].pop("error")
        tree = to_ours(rules(self.levels), self.state, shapes, where)
        # Infinite is what it is before the first batch.
        never = Deferred((), error.dtype, lambda: np.full((), np.inf, error.dtype))
        return CodecPart(config, tree["params"], Codebook(**tree["codebook"] | {"error": never}))


def write_codec(file: Path, part: CodecPart, prefix: str) -> None:
    """Writes the torch file; `part` is of `Deferred`s, `prefix` stands before every name.

    Raises:
        InputError: as `named_tensors`.
    """
    write_torch(file, *named_tensors(part, prefix))


def named_tensors(
    part: CodecPart, prefix: str = ""
) -> tuple[dict[str, Slot], Iterator[tuple[Slot, np.ndarray]]]:
    """The release's state dict of a codec of `Deferred`s, as `rules.to_theirs` gives it.

    Raises:
        InputError: the released code cannot hold this architecture.
    """
    config = part.config
    if not isinstance(config, VQVAEConfig) or not isinstance(config.quantiser, MovingAverage):
        raise InputError(
            f"the codec is a {config.kind} with quantiser {config.quantiser.kind}; the official"
            " code has vqvae with moving_average"
        )
    has = {
        "residual_blocks": (config.residual_blocks, 0),
        "downsampling": (config.downsampling, 1 << LEVELS),
        "channels": (set(config.level_channels), {config.level_channels[0]}),
    }
    for name, (own, released) in has.items():
        if own != released:
            said = "the same in every layer" if name == "channels" else released
            raise InputError(
                f"the codec has {name} {getattr(config, name)}; the official code has {said}"
            )
    if prefix not in ("", PREFIX):
        raise InputError(f"bundle.json has prefix {prefix!r} for the codec, expected {PREFIX!r}")
    codebook = part.codebook._asdict()
    del codebook["error"]  # the official code has no such thing
    tree = {"params": part.params, "codebook": codebook}
    return to_theirs(rules(LEVELS), tree, prefix)


def differences(config: CodecConfig) -> list[str]:
    """What the released code does otherwise than this image tokenizer was trained to, in words."""
    released = VQVAEConfig()
    return [
        f"it normalises pixels with the {name} {getattr(released, name)}, not {own}"
        for name in ("mean", "std")
        if (own := tuple(getattr(config, name))) != getattr(released, name)
    ]
