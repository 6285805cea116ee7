"""Reads the embedded images with captions in two languages: `data.source.kind = "emoji"`."""

from dataclasses import dataclass
from typing import Literal

from cogview_jax.data import emoji_set
from cogview_jax.data.records import Record
from cogview_jax.data.sources.source import Source, SourceConfig
from cogview_jax.runtime.config import SettingError, require_range
from cogview_jax.runtime.errors import InputError

#: The language of each caption of a record.
CAPTION_KEYS = {"caption_en": "en", "caption_zh": "zh"}


@dataclass(frozen=True, kw_only=True)
class Emoji(SourceConfig):
    """The settings of the embedded images: 256 concepts in four styles, see `emoji_set`.

    Attributes:
        kind: "emoji".
        split: "train", or "held_out": the quarter of the pairs of concept and style that training
            does not see.
        caption_keys: the captions of a record, "caption_en" or "caption_zh". If it is empty, a
            record has both.
        size: height and width of an image in pixels, at most 64. Smaller ones are averages of the
            pixels of the embedded ones.
    """

    kind: Literal["emoji"] = "emoji"
    split: Literal["train", "held_out"] = "train"
    caption_keys: tuple[str, ...] = ()
    size: int = emoji_set.TILE

    def __post_init__(self):
        super().__post_init__()
        require_range(self, "size", at_least=8, at_most=emoji_set.TILE)
        for key in self.caption_keys:
            if key not in CAPTION_KEYS:
                choices = ", ".join(CAPTION_KEYS)
                raise SettingError(
                    f"caption_keys = {self.caption_keys!r}: {key!r} is none of {choices}"
                )

    def open(self) -> Source[Record]:
        """Opens a split; see `SourceConfig.open`."""
        if self.size**2 > self.max_pixels:
            raise InputError(
                f"data.source.max_pixels = {self.max_pixels}: expected at least {self.size**2}, the"
                f" pixels of an image of data.source.size = {self.size}"
            )
        emoji_set.require_webp()
        return EmojiSource(self.split, self.caption_keys or tuple(CAPTION_KEYS), self.size)


class EmojiSource:
    """The images of a split, concept by concept. They are decoded when the first is read."""

    def __init__(self, split: str, caption_keys: tuple[str, ...], size: int):
        """Opens the split without reading an image; see `Emoji` for the arguments."""
        self._split, self._size = split, size
        self._languages = [CAPTION_KEYS[key] for key in caption_keys]
        self._pairs = emoji_set.pairs(split)

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._pairs)

    def describe(self) -> str:
        """Returns one line with the number of images and what they are."""
        return (
            f"{len(self)} embedded emoji, split {self._split!r} of {len(emoji_set.concepts())}"
            f" concepts in {len(emoji_set.STYLES)} styles"
        )

    def key(self, i: int) -> str:
        """Returns the style and the code of image `i`, such as "emoji/flat/1f98b"."""
        concept, style = self._pairs[i]
        return f"emoji/{emoji_set.STYLES[style].name}/{emoji_set.concepts()[concept].code}"

    def __getitem__(self, i: int) -> Record:
        """Reads image `i`.

        Raises:
            InputError: the files of the package are damaged.
            SystemFault: the machine cannot read them.
        """
        numbers = self._pairs[i]
        concept, style = emoji_set.concepts()[numbers[0]], emoji_set.STYLES[numbers[1]]
        image = emoji_set.tile(*numbers, self._size)
        captions = [emoji_set.caption(concept, style, language) for language in self._languages]
        return Record(self.key(i), image, tuple(captions))
