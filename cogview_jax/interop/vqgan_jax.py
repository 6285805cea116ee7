"""The VQGANs of dalle-mini, as the package vqgan-jax saves them: a msgpack of a Flax tree, read.

Its names are those of taming-transformers in Flax's spelling: NAME_0 for NAME.0, kernels as ours.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import serialization

from cogview_jax.checkpoints.bundle_parts import CodecPart
from cogview_jax.interop import vqgan
from cogview_jax.interop.rules import flat
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import read_regular
from cogview_jax.tokenizers.quantisers.learned import Learned

#: The most bytes of a file: the largest released one has 0.3 GB.
LARGEST = 8 << 30


@dataclass(frozen=True)
class Transposed:
    """An array with its axes in torch's order, so that one table of rules serves both."""

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        """Its type."""
        return self.array.dtype

    def read(self) -> np.ndarray:
        """Its values."""
        return self.array


def read(file: Path | str, grid: int | None) -> tuple[CodecPart, list[str]]:
    """The image tokenizer of a file, and no names that were dropped.

    Raises:
        InputError: it is no such file, or of another architecture.
    """
    where, path = str(file), Path(file)
    try:
        tree = serialization.msgpack_restore(read_regular(path, LARGEST))
    except InputError:
        raise
    except Exception as error:  # a damaged file can end in any of them
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{where} is no msgpack of a Flax tree ({reason})") from error
    if not isinstance(tree, dict) or not tree:
        raise InputError(f"{where} holds no tree of parameters")
    state = {_theirs(name): Transposed(_torch_order(value)) for name, value in flat(tree).items()}
    quantiser = Learned(codebook_weight=0.25)
    config = vqgan.infer_config(state, vqgan.TAMING, quantiser, grid, where)
    return vqgan.read_part(state, config, vqgan.TAMING, where), []


def _theirs(name: str) -> str:
    """A dotted name as taming-transformers spells it."""
    name = re.sub(r"\b(down|up|block|attn)_(\d+)(?=\.)", r"\1.\2", name)
    name = re.sub(r"(?<=mid\.)(block|attn)\.", r"\1_", name)
    return re.sub(r"\.(kernel|scale|embedding)$", ".weight", name)


def _torch_order(value: Any) -> np.ndarray:
    """A convolution kernel [h, w, in, out] as [out, in, h, w]; anything else as it is."""
    array = np.asarray(value)
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 and math.prod(array.shape) else array
