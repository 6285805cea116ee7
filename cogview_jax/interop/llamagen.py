"""LlamaGen's image tokenizers (Sun et al. 2024, arXiv 2406.06525), read.

The file is {"model": ...} or {"ema": ...}, or the state dict itself. Codes and encoder outputs are
compared on the unit sphere, as in every release: the weights do not tell.
"""

from pathlib import Path

from cogview_jax.checkpoints.bundle_parts import CodecPart
from cogview_jax.interop import vqgan
from cogview_jax.interop.taming import state_dict
from cogview_jax.interop.torch_format.file import read_torch
from cogview_jax.tokenizers.quantisers.learned import Cosine

#: A record of which codes were used lately; averages of our own take its place.
DROPPED = "quantize.codebook_used"


def read(file: Path | str, grid: int | None) -> tuple[CodecPart, list[str]]:
    """The image tokenizer of a file, its arrays `Deferred`, and the names that were dropped.

    Raises:
        InputError: it is no such file, or of another architecture.
    """
    where = str(file)
    state = dict(state_dict(read_torch(file), ("ema", "model", "state_dict"), where))
    dropped = [DROPPED] * (state.pop(DROPPED, None) is not None)
    config = vqgan.infer_config(state, vqgan.LLAMAGEN, Cosine(), grid, where)
    return vqgan.read_part(state, config, vqgan.LLAMAGEN, where), dropped
