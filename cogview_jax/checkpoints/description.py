"""bundle.json: what it may say, and which of its parts belong together.

Everything is checked when the file is read, in one place: types and missing keys by the dataclasses
below, the sizes of parts against each other, and the seal over all of it. Keys of parts that this
version does not know are left alone.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from cogview_jax.models.config import TransformerConfig
from cogview_jax.runtime.config import build
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.sealed import check_seal, read_object
from cogview_jax.sampling.options import SamplingSettings
from cogview_jax.tokenizers.codecs.codec import CodecConfig
from cogview_jax.tokenizers.layout import LayoutConfig, make_layout
from cogview_jax.tokenizers.vocabulary import Vocabulary

NAME, FORMAT = "bundle.json", 1
#: No size is larger.
LARGEST = 2**31 - 1
#: Tokens that sparse attention may look at, whatever the length of a row: it sets memory aside.
ROOMY = 1 << 16

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


@dataclass(frozen=True)
class CodecEntry:
    """The entry of an image tokenizer.

    official: facts about its official file, for export. weights: "ema" or "last" of a run that kept
    a moving average of the weights.
    """

    config: CodecConfig
    sha256: str
    official: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None


@dataclass(frozen=True)
class TextEntry:
    """The entry of a text tokenizer."""

    sha256: str
    pieces: int | None = None
    official: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TransformerEntry:
    """The entry of a transformer.

    positions: how many were learned; bundles of before official ones could be read have as many as
    the layout. drop_captions: the share of rows that were trained without their caption, None where
    it is not known. sampling: how it is best sampled. trained_with: part -> the hash it had.
    weights: as of a `CodecEntry`. prompts: examples, which its run was given for its samples.
    kernels: "int8" if they are in 8 bits (`models.quantization`), None if they are as the rest is.
    """

    config: TransformerConfig
    vocabulary: Vocabulary
    layout: LayoutConfig
    sha256: str
    positions: int | None = None
    drop_captions: float | None = None
    sampling: SamplingSettings = SamplingSettings()
    trained_with: dict[str, str] = field(default_factory=dict)
    official: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    prompts: tuple[str, ...] = ()
    kernels: Literal["int8"] | None = None

    @property
    def learned_positions(self) -> int:
        """How many positions were learned."""
        if self.positions is None:
            return make_layout(self.layout, self.vocabulary).positions
        return self.positions


_ENTRIES = {"codec": CodecEntry, "text": TextEntry, "transformer": TransformerEntry}


@dataclass(frozen=True)
class Description:
    """What bundle.json says, and the parts as it is written there."""

    step: int | None
    codec: CodecEntry | None
    text: TextEntry | None
    transformer: TransformerEntry | None
    raw: dict[str, Any]


def read_description(folder: Path) -> Description:
    """What the bundle in `folder` says of itself.

    Raises:
        InputError: there is no bundle, bundle.json is damaged or of another format, lacks a key or
            has one of another type, or its parts do not belong together.
    """
    file = folder / NAME
    if not file.is_file():
        raise InputError(f"{folder} is no bundle: there is no {NAME} in it")
    try:
        raw = read_object(file)
        if "format" in raw and raw["format"] != FORMAT:
            raise InputError(
                f"{folder} has bundle format {str(raw['format'])[:60]}; this program reads {FORMAT}"
            )
        found = described(raw, folder)
    except InputError as error:
        said = str(error).removeprefix(f"{file}: ")
        if said.startswith(str(folder)):
            raise
        raise InputError(f"{file} is not a description of a bundle: {said}") from None
    check_seal(raw, file)
    return found


def described(raw: dict[str, Any], folder: Path) -> Description:
    """What an object like that in bundle.json says of what lies in `folder`.

    Raises:
        InputError: it lacks a key or has one of another type, or its parts do not belong together.
    """
    found = _read(raw)
    _check_companions(found, folder)
    return found


def _read(raw: dict[str, Any]) -> Description:
    if missing := [key for key in ("format", "parts") if key not in raw]:
        raise InputError(f"it lacks {' and '.join(missing)}")
    parts, step = raw["parts"], raw.get("step")
    if not isinstance(parts, dict):
        raise InputError(f"parts are {type(parts).__name__}, expected a section")
    if not (step is None or type(step) is int):
        raise InputError(f"step = {str(step)[:60]}: expected a whole number")
    _check_numbers(parts, "parts")
    entries = {
        name: None if name not in parts else _entry(kind, parts[name], name)
        for name, kind in _ENTRIES.items()
    }
    return Description(step, **entries, raw=raw)


def _check_numbers(value: Any, where: str) -> None:
    """Refuses numbers that are no size of anything, wherever they stand."""
    if isinstance(value, dict):
        for key, entry in value.items():
            _check_numbers(entry, f"{where}.{key}"[:200])
    elif isinstance(value, list):
        for i, entry in enumerate(value):
            _check_numbers(entry, f"{where}[{i}]"[:200])
    elif isinstance(value, int) and abs(value) > LARGEST:
        raise InputError(f"{where}: a number above {LARGEST}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where} = {value}: expected a finite number")


def _entry(kind: type[T], value: Any, name: str) -> T:
    """One part; what this version does not know of it is left out."""
    if isinstance(value, dict):
        known = {entry.name for entry in dataclasses.fields(kind)}
        value = {key: value[key] for key in value if key in known}
    return build(kind, value, name)


def _check_companions(described: Description, folder: Path) -> None:
    """Refuses a transformer beside another codec or text tokenizer than its own."""
    own = described.transformer.trained_with if described.transformer else {}
    for part in own.keys() & _ENTRIES.keys():
        there = getattr(described, part)
        if there is not None and there.sha256 != own[part]:
            raise InputError(
                f"bundle {folder}: its transformer was trained with {part} {own[part][:12]}, but"
                f" the bundle holds {part} {there.sha256[:12]}"
            )


def check_fit(described: Description, folder: Path) -> None:
    """Refuses parts that would sample together all the same, and sample nonsense.

    Raises:
        InputError: the sequence is longer than the learned positions, the transformer has other
            codes than the codec, or looks at far more tokens than there are.
    """
    transformer, codec = described.transformer, described.codec
    if transformer is None:
        return
    layout, vocabulary = transformer.layout, transformer.vocabulary
    needed = make_layout(layout, vocabulary).positions_sampled
    if transformer.learned_positions < needed:
        raise InputError(
            f"bundle {folder}: its transformer has learned {transformer.learned_positions}"
            f" positions, but a sequence of its layout (text_length {layout.text_length}, grid"
            f" {layout.grid}) reaches {needed}"
        )
    config, roomy = transformer.config, max(ROOMY, 16 * transformer.learned_positions)
    if config.sparse and max(config.window * config.window_blocks, config.pivots) > roomy:
        raise InputError(
            f"bundle {folder}: its transformer looks at {config.window_blocks} blocks of"
            f" {config.window} tokens and {config.pivots} pivots: expected at most {roomy}"
        )
    if codec is not None and codec.config.codebook != vocabulary.codes:
        raise InputError(
            f"bundle {folder}: its transformer was trained on {vocabulary.codes} codes, but its"
            f" codec has {codec.config.codebook}"
        )
