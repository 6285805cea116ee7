"""Layouts: what a sequence is made of, task by task.

A layout lists the regions of its sequence. Everything else that depends on the task derives from
the list: tokens, positions, loss weights, prompts, and which tokens may be sampled where. A new
task is a new layout.

Positions count a row's own tokens, so padding never changes them: training pads on the right,
batched sampling on the left. They begin again where a region says so. Every token but the last has
a target; its weight is the text's or the image's, and [PAD] has none.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32

from cogview_jax.runtime.config import require_range
from cogview_jax.runtime.errors import InputError
from cogview_jax.tokenizers.vocabulary import Vocabulary, token_ids

#: The command that announces an image of a given size: up to this many rows and columns.
SIZE_COMMANDS = {8: "TINY", 16: "SMALL", 32: "BASE", 64: "BIG"}


@dataclass(frozen=True)
class Region:
    """A stretch of the sequence: a command, up to `length` pieces of text, `length` image codes.

    `name` is the command's name, or the key under which a part is given and generated. `restarts`:
    positions count from 0 again here.
    """

    kind: Literal["command", "text", "image"]
    name: str
    length: int = 1
    restarts: bool = False

    @property
    def grid(self) -> int:
        """Rows and columns of an image's codes."""
        return math.isqrt(self.length)


class Example(NamedTuple):
    """One row for training, all [layout.length - 1]; a batch has its rows as a first axis.

    It holds numpy arrays, jax arrays once it is on the devices, or their shapes.

    tokens, targets and positions are int32. text_weights and image_weights are float32, 1 (or the
    prompt's weight) where the target is of that kind (commands count as text), else 0.
    """

    tokens: Any
    targets: Any
    positions: Any
    text_weights: Any
    image_weights: Any


#: Text tokens counted from 0, or codes.
Ids = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Layout:
    """The regions of a task's sequence over a vocabulary."""

    task: str
    vocabulary: Vocabulary
    regions: tuple[Region, ...]

    @property
    def length(self) -> int:
        """Tokens of the longest sequence."""
        return sum(region.length for region in self.regions)

    @property
    def positions(self) -> int:
        """How many positions the model needs: tokens of the longest stretch between restarts."""
        stretches = [0]
        for region in self.regions:
            if region.restarts:
                stretches.append(0)
            stretches[-1] += region.length
        return max(stretches)

    @property
    def positions_sampled(self) -> int:
        """How many positions sampling needs: a [PAD] that ends a text is sampled, and never fed."""
        ended = self.regions[-1].name == "PAD"
        return replace(self, regions=self.regions[:-1] if ended else self.regions).positions

    @property
    def images(self) -> tuple[Region, ...]:
        """The regions of images, in order."""
        return tuple(region for region in self.regions if region.kind == "image")

    @property
    def last_part(self) -> Region:
        """The region that sampling fills; what stands before it is the prompt."""
        return next(region for region in reversed(self.regions) if region.kind != "command")

    def region(self, name: str) -> Region:
        """The region that holds the part called `name`."""
        for region in self.regions:
            if region.name == name and region.kind != "command":
                return region
        parts = ", ".join(region.name for region in self.regions if region.kind != "command")
        raise InputError(f"layout {self.task} has no part {name!r}; it has {parts}")

    def prompt_length(self, name: str) -> int:
        """Tokens of the longest row that ends right before the region `name`."""
        before = self.regions[: self.regions.index(self.region(name))]
        return sum(region.length for region in before)

    def allowed(self, name: str) -> tuple[int, int]:
        """The ids [first, last) that may be sampled in the region `name`."""
        if self.region(name).kind == "image":
            return 0, self.vocabulary.codes
        return self.vocabulary.text_start, self.vocabulary.commands_start

    def tokens(self, parts: Mapping[str, Ids]) -> Int32[np.ndarray, " n"]:
        """The row made of `parts`, unpadded: int32 [at most length].

        parts: region name -> text pieces (counted from 0) or codes. A part that is missing ends the
        row before its region: the row is then a prompt, which sampling continues. Raises InputError
        where a part does not fit its region.
        """
        row: list[np.ndarray] = []
        for region in self.regions:
            if region.kind == "command":
                row.append(np.array([self.vocabulary.command(region.name)], np.int32))
                continue
            if region.name not in parts:
                break
            part = token_ids(parts[region.name], region.name)
            self._check(region, part)
            row.append(part + self.vocabulary.text_start if region.kind == "text" else part)
        return np.concatenate(row) if row else np.zeros(0, np.int32)

    def positions_of(self, row: Int[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
        """The position of every token of a row: int32, counted from 0, and again at restarts."""
        positions = np.arange(len(row), dtype=np.int32)
        for region in self.regions:
            if region.restarts:
                at = np.flatnonzero(row == self.vocabulary.command(region.name))
                if len(at):  # a prompt may end before it
                    positions[at[0] :] -= positions[at[0]]
        return positions

    def example(self, parts: Mapping[str, Ids], prompt_weight: float = 1.0) -> Example:
        """The training row of `parts` (see `tokens`), padded on the right with [PAD].

        Text too long for its region is cut to it, as the paper does; a prompt, in contrast, is
        refused. prompt_weight: what targets before the last part weigh, those from there on being
        1.
        """
        cut = {
            region.name: parts[region.name][: region.length]
            if region.kind == "text"
            else parts[region.name]
            for region in self.regions
            if region.kind != "command"
        }
        row = self.tokens(cut)
        padded = np.full(self.length, self.vocabulary.command("PAD"), np.int32)
        padded[: len(row)] = row
        targets = padded[1:]
        image = targets < self.vocabulary.codes
        place = np.arange(1, self.length)
        prompt = len(self.tokens({name: cut[name] for name in cut if name != self.last_part.name}))
        weights = np.where(place < prompt, prompt_weight, place < len(row)).astype(np.float32)
        return Example(
            tokens=padded[:-1],
            targets=targets,
            # Padding behind a restarted stretch has none of its own.
            positions=np.minimum(self.positions_of(padded[:-1]), self.positions - 1),
            text_weights=weights * ~image,
            image_weights=weights * image,
        )

    def _check(self, region: Region, part: np.ndarray) -> None:
        """Refuses a part that is too long for its region, or whose ids are none of its kind."""
        if region.kind == "text" and len(part) > region.length:
            raise InputError(
                f"{region.name} has {len(part)} tokens, but the text region holds {region.length}:"
                " shorten it"
            )
        if region.kind == "image" and len(part) != region.length:
            raise InputError(f"{region.name} has {len(part)} codes, expected {region.length}")
        limit = self.vocabulary.codes if region.kind == "image" else self.vocabulary.text
        if len(part) and not (part.min() >= 0 and part.max() < limit):
            raise InputError(
                f"{region.name} has ids from {part.min()} to {part.max()}, expected 0 to"
                f" {limit - 1}"
            )


def left_padded(
    rows: Sequence[np.ndarray], length: int
) -> tuple[Int32[np.ndarray, "rows length"], Bool[np.ndarray, "rows length"]]:
    """Prompts of different lengths as one batch that ends together: tokens, valid [rows, length].

    tokens are int32 and 0 where there is none; valid is bool, True on a row's own tokens.
    """
    tokens = np.zeros((len(rows), length), np.int32)
    valid = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        tokens[i, length - len(row) :] = row
        valid[i, length - len(row) :] = True
    return tokens, valid


def right_padded(
    rows: Sequence[np.ndarray], length: int
) -> tuple[Int32[np.ndarray, "rows length"], Bool[np.ndarray, "rows length"]]:
    """The same, of sequences that begin together."""
    tokens, valid = left_padded([row[::-1] for row in rows], length)
    return tokens[:, ::-1].copy(), valid[:, ::-1].copy()


@dataclass(frozen=True)
class LayoutConfig:
    """What a config says of its layout.

    Attributes:
        task: text_to_image, caption or super_resolution.
        text_length: pieces of the longest text; 0 for super-resolution from the image alone.
        grid: rows and columns of the code grid; of the larger one where there are two.
    """

    task: str = "text_to_image"
    text_length: int = 61
    grid: int = 32

    def __post_init__(self):
        require_range(self, "text_length", at_least=0, at_most=2**20)
        require_range(self, "grid", at_least=1, at_most=2**10)


def size_command(grid: int) -> str:
    """The command that announces a grid x grid image: the smallest size that holds it, or BIG."""
    for size, command in SIZE_COMMANDS.items():
        if grid <= size:
            return command
    return SIZE_COMMANDS[max(SIZE_COMMANDS)]


def text_to_image(config: LayoutConfig, vocabulary: Vocabulary) -> Layout:
    """[ROI1] text [size] [BOI1] codes [EOI1]: the pretraining sequence
    (arXiv 2105.13290, section 2.3)."""
    regions = (
        Region("command", "ROI1"),
        Region("text", "text", config.text_length),
        Region("command", size_command(config.grid)),
        Region("command", "BOI1"),
        Region("image", "image", config.grid**2),
        Region("command", "EOI1"),
    )
    return Layout("text_to_image", vocabulary, regions)


def caption(config: LayoutConfig, vocabulary: Vocabulary) -> Layout:
    """[size] [BOI1] codes [EOI1] [ROI1] text [PAD]: the order is swapped for captioning
    (arXiv 2105.13290, section 3.2).

    The first [PAD] has a target, unlike padding: it is how a model says that its text has ended.
    """
    regions = (
        Region("command", size_command(config.grid)),
        Region("command", "BOI1"),
        Region("image", "image", config.grid**2),
        Region("command", "EOI1"),
        Region("command", "ROI1"),
        Region("text", "text", config.text_length),
        Region("command", "PAD"),
    )
    return Layout("caption", vocabulary, regions)


def super_resolution(config: LayoutConfig, vocabulary: Vocabulary) -> Layout:
    """An image's codes, and those of the same image in twice as many rows and columns.

    [ROI1] text [size] [BOI1] source [EOI1] [ROI2] [size] [BOI2] codes [EOI2], positions from 0
    again at [ROI2] (arXiv 2105.13290, section 3.1). Both size commands are the larger image's, as
    in the paper.
    """
    size = size_command(config.grid)
    regions = (
        Region("command", "ROI1"),
        Region("text", "text", config.text_length),
        Region("command", size),
        Region("command", "BOI1"),
        Region("image", "source", (config.grid // 2) ** 2),
        Region("command", "EOI1"),
        Region("command", "ROI2", restarts=True),
        Region("command", size),
        Region("command", "BOI2"),
        Region("image", "image", config.grid**2),
        Region("command", "EOI2"),
    )
    return Layout("super_resolution", vocabulary, regions)


TASKS: dict[str, Callable[[LayoutConfig, Vocabulary], Layout]] = {
    "text_to_image": text_to_image,
    "caption": caption,
    "super_resolution": super_resolution,
}


def make_layout(config: LayoutConfig, vocabulary: Vocabulary) -> Layout:
    """The layout of `config.task`; InputError with the choices where there is none."""
    if config.task not in TASKS:
        raise InputError(f"layout task {config.task!r} is unknown; choose from {', '.join(TASKS)}")
    least = 0 if config.task == "super_resolution" else 1
    if config.text_length < least:
        raise InputError(
            f"layout.text_length = {config.text_length}: layout.task {config.task} expects at least"
            f" {least}"
        )
    if config.task == "super_resolution" and config.grid % 2:
        raise InputError(f"layout super_resolution with grid {config.grid}: expected an even one")
    return TASKS[config.task](config, vocabulary)
