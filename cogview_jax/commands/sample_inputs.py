"""What a sampling job is given: prompts, image files, and its options."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np

from cogview_jax.data.images import decode_image, read_image_file
from cogview_jax.data.records import BadRecord, printable
from cogview_jax.data.transforms import center_crop
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.pipeline.load import load
from cogview_jax.pipeline.parts import EVERY_PART
from cogview_jax.runtime.bounds import MOST_IMAGES, need_count
from cogview_jax.runtime.counted import counted
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import is_fault, reason
from cogview_jax.runtime.files import text_lines
from cogview_jax.sampling.options import SamplingConfig, SamplingOptions, SamplingSettings
from cogview_jax.tokenizers.prompt import need_text

#: Bytes of a file of prompts that are read at most: a million prompts of the usual length.
PROMPTS_LIMIT = 64 << 20


@dataclass(frozen=True)
class JobOptions:
    """Options shared by all tasks of `sample` (see `sample --help`).

    Attributes:
        sampling: seed and batch size; of an `over`, how tokens are chosen, too.
        num_images: results for each prompt, or for each image and its prompt.
        precision: the policy of the arithmetic.
        long_prompts: what becomes of prompts that are longer than the text region.
        settings: of how tokens are chosen, those that the user gave.
    """

    sampling: SamplingOptions = SamplingOptions()
    num_images: int = 1
    precision: str = "float32"
    long_prompts: Literal["cut", "refuse"] = "cut"
    settings: SamplingSettings = SamplingSettings()

    def __post_init__(self):
        need_count("--num_images", self.num_images, MOST_IMAGES)

    def over(self, usual: SamplingConfig) -> "JobOptions":
        """The same with `usual` for how tokens are chosen, where the user has not said.

        A line on standard error says how they are.
        """
        config = self.settings.over(usual)
        given = asdict(config)
        if not given["parallel_window"]:
            del given["parallel_window"]
        said = ", ".join(f"{name} {value:g}" for name, value in given.items())
        print(f"sampling with {said}", file=sys.stderr)
        return replace(self, sampling=replace(self.sampling, sampling=config))

    def load(self, bundle: str, task: str | None = None) -> CogView:
        """The bundle, computing in the `precision`, and treating prompts as `long_prompts` says.

        Raises:
            InputError: it lacks a part, or its transformer was not trained for `task`, if that is
                given: found out before anything is read.
        """
        return load(
            bundle,
            dtype=self.precision,
            long_prompts=self.long_prompts,
            needs=EVERY_PART,
            task=task,
        )


def read_prompts(given: Sequence[str], file: str | None, needed: bool = True) -> list[str]:
    """Prompts from flags, then from a file with one a line; blank lines are passed over.

    The file may be a pipe, such as /dev/stdin: it is read up to its end or to PROMPTS_LIMIT.

    Raises:
        InputError: a flag's prompt is no text, the file cannot be read or is no UTF-8, there are
            more prompts than MOST_IMAGES, or none at all though some is `needed`.
    """
    prompts = list(given)
    for prompt in prompts:
        need_text(prompt)
    if file:
        prompts += [line.strip() for line in prompt_lines(file) if line.strip()]
    if needed and not prompts:
        raise InputError("no prompt: give --prompt TEXT (repeatable) or --prompts FILE")
    need_count("number of prompts", len(prompts), MOST_IMAGES, 0)
    return prompts


def prompt_lines(file: str) -> list[str]:
    """The lines of a UTF-8 file or pipe of prompts, as `text_lines` has them.

    Raises:
        InputError: it cannot be read, is no UTF-8, or has more lines than MOST_IMAGES.
    """
    try:
        data = _read_prompts(file)
        need_count(f"--prompts {file}: number of lines", data.count(b"\n"), MOST_IMAGES, 0)
        return text_lines(data)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        if is_fault(error):
            raise
        raise InputError(
            f"--prompts {file} cannot be read as UTF-8 text: {reason(error)}"
        ) from error


def _read_prompts(file: str) -> bytes:
    """The bytes of a file or pipe, if they are no more than PROMPTS_LIMIT."""
    if "\0" in file:
        raise ValueError("a name of a file holds no NUL")
    with open(file, "rb") as opened:
        data = opened.read(PROMPTS_LIMIT + 1)
    if len(data) > PROMPTS_LIMIT:
        raise ValueError(f"it is larger than {PROMPTS_LIMIT} bytes")
    return data


def good_prompts(
    model: CogView, prompts: Sequence[str], needed: int | None = None
) -> list[tuple[int, str]]:
    """The prompts that the model can be given, each with its number; says which it cannot.

    Args:
        model: a prompt is good if its `prompts.pieces_of` takes it.
        prompts: numbered from 0, bad ones included.
        needed: how many of the first ones have to be good; all where None.

    Raises:
        InputError: one that is needed is bad, or all are.
    """
    refused, good = model.prompts.refused(prompts), []
    needed = len(prompts) if needed is None or len(refused) == len(set(prompts)) else needed
    for number, prompt in enumerate(prompts):
        if prompt not in refused:
            good.append((number, prompt))
        elif number < needed:
            raise InputError(refused[prompt])
        else:
            print(
                f"left out, number {number + 1} of {len(prompts)}: {refused[prompt]}",
                file=sys.stderr,
            )
    return good


def paired(images: Sequence[str], prompts: Sequence[str], task: str) -> list[str]:
    """A text for each image, of as many or of one for all; InputError for other numbers."""
    need_images(images, task)
    if len(prompts) not in (1, len(images)):
        raise InputError(
            f"{counted(len(images), 'image')} and {counted(len(prompts), 'prompt')}: expected one"
            " prompt for each, or one for all"
        )
    return list(prompts) * (len(images) // len(prompts))


def need_images(images: Sequence[str], task: str) -> None:
    """InputError where there is no image."""
    if not images:
        raise InputError(f"--task {task} needs an image: --image FILE (repeatable)")


def need_one_each(options: JobOptions, task: str) -> None:
    """InputError where more than one result is asked for an image."""
    if options.num_images != 1:
        raise InputError(
            f"--num_images {options.num_images}: --task {task} writes one line an image"
        )


def read_images(files: Sequence[str], size: int) -> np.ndarray:
    """The centred squares of image files, uint8 [n, size, size, 3].

    Raises:
        InputError: one is no regular file, or no image that can be read.
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
