"""CompVis' taming-transformers: checkpoints of VQModel and GumbelVQ, read and written.

A checkpoint is what torch.save makes of {"state_dict": ...}, alone or in the envelope that
Lightning writes, with the keys of the loss (the discriminator, the perceptual network) among those
of the model. Those are dropped: a bundle holds the image tokenizer alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cogview_jax.checkpoints.bundle_parts import CodecPart
from cogview_jax.interop import vqgan
from cogview_jax.interop.rules import to_theirs
from cogview_jax.interop.torch_format.file import read_torch, write_torch
from cogview_jax.runtime.errors import InputError
from cogview_jax.tokenizers.codecs.vqgan import VQGANConfig
from cogview_jax.tokenizers.quantisers.gumbel import GumbelProjection
from cogview_jax.tokenizers.quantisers.learned import Learned
from cogview_jax.tokenizers.quantisers.quantiser import Quantiser

#: Keys of what only training needs begin with it.
LOSS = "loss."


def read(file: Path | str, grid: int | None) -> tuple[CodecPart, list[str]]:
    """The image tokenizer of a checkpoint, its arrays `Deferred`, and the names that were dropped.

    The codes are found as the original's inference finds them: the nearest, or for GumbelVQ the
    largest logit, without noise.

    Raises:
        InputError: it is no such checkpoint, or of another architecture.
    """
    state, where = state_dict(read_torch(file), ("state_dict",), str(file)), str(file)
    dropped = [name for name in state if name.startswith(LOSS)]
    state = {name: tensor for name, tensor in state.items() if not name.startswith(LOSS)}
    quantiser: Quantiser
    if "quantize.embed.weight" in state:
        quantiser = GumbelProjection(last_temperature=1e-6, anneal_steps=1_000_001, hard=True)
    else:
        # What the released code trains with, whatever its setting beta says.
        quantiser = Learned(codebook_weight=0.25)
    config = vqgan.infer_config(state, vqgan.TAMING, quantiser, grid, where)
    return vqgan.read_part(state, config, vqgan.TAMING, where), dropped


def write(file: Path, part: CodecPart) -> None:
    """Writes {"state_dict": ...} with the tensors of the model; `part` is of `Deferred`s.

    Raises:
        InputError: the original code cannot hold this architecture.
    """
    config = part.config
    if not isinstance(config, VQGANConfig):
        raise InputError(f"the codec is a {config.kind}; taming-transformers has vqgan")
    quantiser = config.quantiser
    if type(quantiser) not in (Learned, GumbelProjection):
        raise InputError(
            f"the codec has the quantiser {quantiser.kind}; taming-transformers has learned and"
            " gumbel_projection"
        )
    same = {
        "norm_groups": (config.norm_groups, 32),
        "decoder_multipliers": (config.decoder_level_multipliers, config.multipliers),
    }
    if isinstance(quantiser, GumbelProjection):
        same["latent_channels"] = config.latent_channels, config.code_width
    for name, (own, theirs) in same.items():
        if own != theirs:
            raise InputError(f"the codec has {name} {own}; taming-transformers has {theirs}")
    slots, arrays = to_theirs(vqgan.rules(config, vqgan.TAMING), {"params": part.params})
    write_torch(file, {"state_dict": slots}, arrays)


def state_dict(tree: Any, envelopes: tuple[str, ...], where: str) -> Mapping[str, Any]:
    """The state dict in a file's tree: under the first of the names `envelopes`, or the tree."""
    for name in envelopes:
        if isinstance(tree, dict) and isinstance(tree.get(name), dict):
            tree = tree[name]
            break
    if not isinstance(tree, dict) or not tree or not all(isinstance(name, str) for name in tree):
        raise InputError(f"{where} holds no state dict")
    return tree
