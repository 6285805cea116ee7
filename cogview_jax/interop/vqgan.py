"""What the released VQGANs have in common: rules between their tensors and our arrays, and sizes.

CompVis' taming-transformers, LlamaGen and vqgan-jax share one architecture, and call its parts
differently; see the modules of their names.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cogview_jax.checkpoints.bundle import codec_shapes
from cogview_jax.checkpoints.bundle_parts import CodecPart
from cogview_jax.checkpoints.stored_tree import Deferred
from cogview_jax.interop.rules import (
    CONVOLUTION,
    PROJECTION,
    SAME,
    TABLE,
    Rule,
    StoredTensor,
    required,
    to_ours,
)
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tokenizers.codecs.vqgan import VQGANConfig
from cogview_jax.tokenizers.quantisers.gumbel import GumbelProjection
from cogview_jax.tokenizers.quantisers.quantiser import Quantiser

#: The pixels of an image whose grid nothing tells: what the released models were trained on.
IMAGE_SIZE = 256


#: What the state of a quantiser is taken to be where nothing was measured. A code that was trained
#: counts as used once a batch: one that is not used soon falls below the share that is revived,
#: but the first batch moves none.
UNMEASURED = {"counts": 1.0, "error": np.inf}


@dataclass(frozen=True)
class Names:
    """What a code base calls the parts of a VQGAN; `{}` stands for a number.

    encoder_level, decoder_level: a level. block, attention: a part of a level. middle: the two
    residual blocks and the attention in their middle. mirrored: whether the decoder counts its
    levels from the codes outwards.
    """

    encoder_level: str
    decoder_level: str
    block: str
    attention: str
    middle: tuple[str, str, str]
    mirrored: bool = False


TAMING = Names(
    "encoder.down.{}", "decoder.up.{}", "block.{}", "attn.{}", ("block_1", "attn_1", "block_2")
)
LLAMAGEN = Names(
    "encoder.conv_blocks.{}", "decoder.conv_blocks.{}", "res.{}", "attn.{}", ("0", "1", "2"), True
)


def rules(config: VQGANConfig, names: Names) -> tuple[Rule, ...]:
    """The table for a VQGAN of these sizes, in the order of the layers."""
    return (*_encoder(config, names), *_decoder(config, names), *_quantiser(config.quantiser))


def _pair(theirs: str, ours: str, form: Any = CONVOLUTION) -> Iterator[Rule]:
    yield Rule(f"{theirs}.weight", f"params.{ours}.{'scale' if form is SAME else 'kernel'}", form)
    yield Rule(f"{theirs}.bias", f"params.{ours}.bias", SAME)


def _block(theirs: str, ours: str, into: int, out: int) -> Iterator[Rule]:
    for name in ("norm1", "conv1", "norm2", "conv2"):
        form = SAME if name.startswith("norm") else CONVOLUTION
        yield from _pair(f"{theirs}.{name}", f"{ours}.{name}", form)
    if into != out:
        yield from _pair(f"{theirs}.nin_shortcut", f"{ours}.shortcut")


def _attention(theirs: str, ours: str) -> Iterator[Rule]:
    yield from _pair(f"{theirs}.norm", f"{ours}.norm", SAME)
    for name, own in (("q", "query"), ("k", "key"), ("v", "value"), ("proj_out", "out")):
        yield from _pair(f"{theirs}.{name}", f"{ours}.{own}")


def _level(
    config: VQGANConfig, names: Names, theirs: str, ours: str, level: int, channels: list[int]
) -> Iterator[Rule]:
    """The blocks and attentions of a level; `channels` are those before and after each block."""
    for i in range(len(channels) - 1):
        block, own = names.block.format(i), f"{ours}.level_{level}_block_{i}"
        yield from _block(f"{theirs}.{block}", own, channels[i], channels[i + 1])
        if level in config.attention:
            attention = names.attention.format(i)
            yield from _attention(f"{theirs}.{attention}", f"{ours}.level_{level}_attention_{i}")


def _middle(names: Names, side: str) -> Iterator[Rule]:
    first, attention, second = (f"{side}.mid.{name}" for name in names.middle)
    yield from _block(first, f"{side}.middle.block_0", 1, 1)
    yield from _attention(attention, f"{side}.middle.attention")
    yield from _block(second, f"{side}.middle.block_1", 1, 1)


def _encoder(config: VQGANConfig, names: Names) -> Iterator[Rule]:
    yield from _pair("encoder.conv_in", "encoder.conv_in")
    into = config.channels
    for level, multiplier in enumerate(config.multipliers):
        theirs, out = names.encoder_level.format(level), config.channels * multiplier
        channels = [into] + [out] * config.blocks
        yield from _level(config, names, theirs, "encoder", level, channels)
        if level + 1 < len(config.multipliers):
            yield from _pair(f"{theirs}.downsample.conv", f"encoder.level_{level}_down")
        into = out
    yield from _middle(names, "encoder")
    yield from _pair("encoder.norm_out", "encoder.norm_out", SAME)
    yield from _pair("encoder.conv_out", "encoder.conv_out")
    yield from _pair("quant_conv", "encoder_out")


def _decoder(config: VQGANConfig, names: Names) -> Iterator[Rule]:
    yield from _pair("post_quant_conv", "decoder_in")
    yield from _pair("decoder.conv_in", "decoder.conv_in")
    yield from _middle(names, "decoder")
    multipliers = config.decoder_level_multipliers
    last = len(multipliers) - 1
    into = config.channels * multipliers[-1]
    for level, multiplier in reversed(list(enumerate(multipliers))):
        theirs = names.decoder_level.format(last - level if names.mirrored else level)
        out = config.channels * multiplier
        channels = [into] + [out] * (config.blocks + 1)
        yield from _level(config, names, theirs, "decoder", level, channels)
        if level:
            yield from _pair(f"{theirs}.upsample.conv", f"decoder.level_{level}_up")
        into = out
    yield from _pair("decoder.norm_out", "decoder.norm_out", SAME)
    yield from _pair("decoder.conv_out", "decoder_out")


def _quantiser(quantiser: Quantiser) -> Iterator[Rule]:
    if isinstance(quantiser, GumbelProjection):
        yield Rule("quantize.proj.weight", "params.quantiser.kernel", PROJECTION)
        yield Rule("quantize.proj.bias", "params.quantiser.bias", SAME)
        yield Rule("quantize.embed.weight", "params.quantiser.codes", TABLE)
    else:
        yield Rule("quantize.embedding.weight", "params.quantiser.codes", TABLE)


def infer_config(
    state: Mapping[str, Any], names: Names, quantiser: Quantiser, grid: int | None, where: str
) -> VQGANConfig:
    """The sizes that the tensors of a state dict tell.

    Args:
        state: their name -> tensor.
        names: what the parts are called.
        quantiser: how the codes are found.
        grid: rows and columns of an image's codes; None for images of 256 pixels.
        where: the file, for complaints.

    Raises:
        InputError: a tensor that a size is read from is missing, or sizes contradict each other.
    """

    def count(pattern: str) -> int:
        form = re.compile(re.escape(pattern).replace(r"\{\}", r"(\d+)") + r"\.")
        return len({match[1] for name in state if (match := form.match(name))})

    def out(name: str) -> int:
        return required(state, f"{name}.weight", 4, where)[0]

    channels = out("encoder.conv_in")
    levels = count(names.encoder_level)
    if levels < 2 or count(names.decoder_level) != levels:
        raise InputError(
            f"{where} has {levels} levels in its encoder and {count(names.decoder_level)} in its"
            " decoder, expected the same number, at least 2"
        )

    def multipliers(level_name: str, order: Callable[[int], int]) -> tuple[int, ...]:
        found = []
        for level in map(order, range(levels)):
            name = f"{level_name.format(level)}.{names.block.format(0)}.conv1"
            found.append(out(name) // channels)
        return tuple(found)

    first = names.encoder_level.format(0)
    attention = tuple(
        level
        for level in range(levels)
        if count(f"{names.encoder_level.format(level)}.{names.attention}")
    )
    encoder = multipliers(names.encoder_level, lambda level: level)
    decoder = multipliers(
        names.decoder_level,
        (lambda level: levels - 1 - level) if names.mirrored else (lambda level: level),
    )
    codes = "embed" if isinstance(quantiser, GumbelProjection) else "embedding"
    codebook, width = required(state, f"quantize.{codes}.weight", 2, where)
    downsampling = 1 << (levels - 1)
    size = IMAGE_SIZE // downsampling if grid is None else grid
    return VQGANConfig(
        image_size=size * downsampling,
        codebook=codebook,
        code_width=width,
        quantiser=quantiser,
        channels=channels,
        multipliers=encoder,
        decoder_multipliers=() if decoder == encoder else decoder,
        blocks=count(f"{first}.{names.block}"),
        attention=attention,
        latent_channels=out("encoder.conv_out"),
    )


def read_part(
    state: Mapping[str, StoredTensor], config: VQGANConfig, names: Names, where: str
) -> CodecPart:
    """The image tokenizer, its arrays `Deferred`, with a state that was not measured.

    Raises:
        InputError: a tensor is missing, unknown or of another shape than the rest.
    """
    shapes = unbox(codec_shapes(config))
    tree = to_ours(rules(config, names), state, {"params": shapes["params"]}, where)
    fresh = {
        name: Deferred(leaf.shape, leaf.dtype, _filled(leaf, UNMEASURED.get(name, 0)))
        for name, leaf in shapes["codebook"].items()
    }
    return CodecPart(config, tree["params"], config.quantiser.State(**fresh))


def _filled(leaf: Any, value: float) -> Callable[[], np.ndarray]:
    return lambda: np.full(leaf.shape, value, leaf.dtype)
