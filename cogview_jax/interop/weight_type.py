"""A bundle with its weights in another type: float16 takes half the room, int8 about a third."""

from dataclasses import replace
from typing import Any

import jax
import ml_dtypes
import numpy as np

from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.bundle_parts import CodecPart, TransformerPart
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.checkpoints.quantized_tree import quantized_tree, rounded
from cogview_jax.checkpoints.step_bundle import open_bundle
from cogview_jax.checkpoints.stored_tree import Deferred
from cogview_jax.interop.files import (
    NOTHING_WRITTEN,
    check_bundle_output,
    log,
    progress_of,
    reporting,
)
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import at_work

#: The types that weights can be given; with int8, only kernels have 8 bits.
TYPES = ("float32", "bfloat16", "float16", "int8")


def change_type(bundle: str, dtype: str, out: str) -> None:
    """Writes the bundle `out`: `bundle` with weights rounded to `dtype`, to the nearest.

    The image tokenizer beside a transformer stays as it is, to the bit: rounded, it would give
    other codes than the transformer has learned. So it is rounded while it is alone, before
    `prepare` encodes images with it. Only transformers can be int8 (`models.quantization`). One
    array at a time is in memory.

    Raises:
        InputError: there is no such type or bundle, the bundle has no weights, or no transformer
            to be int8, a weight is beyond the range of the type, or `out` exists and is no bundle.
    """
    if dtype not in TYPES:
        raise InputError(f"--dtype {dtype!r}: choices are {', '.join(TYPES)}")
    path, opened = check_bundle_output(out), open_bundle(bundle)
    codec: CodecPart | Bundle | None = opened if "codec" in opened.parts else None
    transformer: TransformerPart | None = None
    if "transformer" in opened.parts:
        transformer = opened.stored_transformer()
        transformer = replace(transformer, params=_rounded(transformer.params, dtype))
    elif dtype == "int8":
        raise InputError(
            f"--bundle {bundle}: no transformer is in it, and no other part can be int8"
        )
    elif codec is not None:
        stored = opened.stored_codec()
        tree = _rounded({"params": stored.params, "codebook": stored.codebook}, dtype)
        codec = replace(stored, **tree)
    else:
        raise InputError(
            f"--bundle {bundle}: no transformer and no codec is in it, whose weights"
            " could be of another type"
        )
    parts = {"codec": codec, "transformer": transformer}
    rounded = [part for part in parts.values() if isinstance(part, (CodecPart, TransformerPart))]
    official = {name: opened.official(name) for name, part in parts.items() if part in rounded}
    with at_work(NOTHING_WRITTEN.format(out)), progress_of(*rounded) as progress:
        write_bundle(
            path,
            codec=reporting(codec, progress) if isinstance(codec, CodecPart) else codec,
            text=opened if "text" in opened.parts else None,
            transformer=None if transformer is None else reporting(transformer, progress),
            step=opened.step,
            official={name: record for name, record in official.items() if record},
        )
    kept = "; the image tokenizer is as it was" if isinstance(codec, Bundle) else ""
    log(f"bundle {out}: {', '.join(Bundle(path).parts)}; weights are {dtype}{kept}")


def _rounded(tree: Any, dtype: str) -> Any:
    """A tree of `Deferred`s whose arrays of numbers with a point are of another type."""
    if dtype == "int8":
        return quantized_tree(tree)
    wanted = np.dtype(getattr(ml_dtypes, dtype, dtype))

    def in_type(keys: tuple[Any, ...], leaf: Deferred) -> Deferred:
        if not jax.numpy.issubdtype(leaf.dtype, np.floating):
            return leaf
        return rounded(jax.tree_util.keystr(keys), leaf, wanted)

    return jax.tree_util.tree_map_with_path(in_type, tree)
