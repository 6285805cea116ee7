"""A bundle's parameters in safetensors, under the names and in the forms of the CogView release."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.interop.files import progress_of, reporting
from cogview_jax.interop.official import codec as official_codec
from cogview_jax.interop.official import transformer as official_transformer
from cogview_jax.interop.safetensors_arrays import write_arrays
from cogview_jax.interop.safetensors_files import IMAGE_TOKENIZER, TEXT_TOKENIZER, TRANSFORMER
from cogview_jax.interop.torch_format.pickle import Slot


def write_parts(opened: Bundle, folder: Path) -> None:
    """Writes a file for each part of a bundle, as `safetensors_files.write_parts` does.

    Raises:
        InputError: the released code cannot hold an architecture.
    """
    if "codec" in opened.parts:
        codec = opened.stored_codec()
        with progress_of(codec) as progress:
            tensors = official_codec.named_tensors(reporting(codec, progress))
            _write(folder / IMAGE_TOKENIZER, *tensors)
    if "transformer" in opened.parts:
        part = opened.stored_transformer()
        with progress_of(part) as progress:
            tensors = official_transformer.named_tensors(reporting(part, progress))
            _write(folder / TRANSFORMER, *tensors)
    if "text" in opened.parts:
        opened.text().save(folder / TEXT_TOKENIZER)


def _write(file: Path, slots: dict[str, Slot], arrays: Iterator[tuple[Slot, np.ndarray]]) -> None:
    names = {slot: name for name, slot in slots.items()}
    # What loads files for torch asks for this format.
    write_arrays(file, slots, ((names[slot], array) for slot, array in arrays), {"format": "pt"})
