"""What sampling is given: prompts, pictures, and how to draw."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cogview_jax.data.images import decode_image, read_image_file
from cogview_jax.data.records import BadRecord, printable
from cogview_jax.data.transforms import center_crop
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import reason
from cogview_jax.sampling.filters import SamplingConfig


@dataclass(frozen=True)
class Draws:
    """How pictures are drawn, whatever of: see the flags of the door."""

    num_images: int = 1
    seed: int = 0
    sampling: SamplingConfig = SamplingConfig()
    batch_size: int | None = None
    precision: str = "float32"

    def __post_init__(self):
        if self.num_images < 1:
            raise InputError(f"--num_images {self.num_images}: expected at least 1")


def read_prompts(given: Sequence[str], file: str | None, needed: bool = True) -> list[str]:
    """Prompts from flags, then from a file with one a line; blank lines are passed over.

    Raises:
        InputError: the file cannot be read, or there is no prompt at all though some is `needed`.
    """
    prompts = list(given)
    if file:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--prompts {file} cannot be read as UTF-8 text: {error}") from error
        prompts += [line.strip() for line in text.splitlines() if line.strip()]
    if needed and not prompts:
        raise InputError("no prompt: give --prompt TEXT (repeatable) or --prompts FILE")
    return prompts


def paired(images: Sequence[str], prompts: Sequence[str], task: str) -> list[str]:
    """A text for each image, of as many or of one for all; InputError for other numbers."""
    need_images(images, task)
    if len(prompts) not in (1, len(images)):
        raise InputError(
            f"{len(images)} images and {len(prompts)} prompts: expected one prompt for each, or one"
            " for all"
        )
    return list(prompts) * (len(images) // len(prompts))


def need_images(images: Sequence[str], task: str) -> None:
    """InputError where there is no image."""
    if not images:
        raise InputError(f"--task {task} needs a picture: --image FILE (repeatable)")


def need_one_each(draws: Draws, task: str) -> None:
    """InputError where more than one result is asked for an image."""
    if draws.num_images != 1:
        raise InputError(f"--num_images {draws.num_images}: --task {task} writes one line an image")


def read_images(files: Sequence[str], size: int) -> np.ndarray:
    """The centred squares of picture files, uint8 [n, size, size, 3].

    Raises:
        InputError: one is no regular file, or no picture that can be read.
        SystemFault: the machine cannot read one.
    """
    return np.stack([_read_image(file, size) for file in files])


def _read_image(file: str, size: int) -> np.ndarray:
    try:
        return center_crop(decode_image(read_image_file(file), file), size)
    except OSError as error:
        why = reason(error)
    except (InputError, BadRecord) as error:
        why = str(error).removeprefix(f"{file}: ")
    raise InputError(f"--image {printable(file)} cannot be read: {why}")
