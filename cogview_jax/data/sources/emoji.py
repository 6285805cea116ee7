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
        styles: the names of the styles whose images are read, such as "flat". If it is empty, all
            are.
        caption: the caption of every image, as one learns a style: "An image of flat style". If it
            is empty, captions name the concept and the style.
        size: height and width of an image in pixels, at most 64. Smaller ones are averages of the
            pixels of the embedded ones.
    """

    kind: Literal["emoji"] = "emoji"
    split: Literal["train", "held_out"] = "train"
    caption_keys: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    caption: str = ""
    size: int = emoji_set.TILE

    def __post_init__(self):
        super().__post_init__()
        require_range(self, "size", at_least=8, at_most=emoji_set.TILE)
        choices = {
            "caption_keys": tuple(CAPTION_KEYS),
            "styles": tuple(style.name for style in emoji_set.STYLES),
        }
        for name, known in choices.items():
            for given in getattr(self, name):
                if given not in known:
                    raise SettingError(
                        f"{name} = {getattr(self, name)!r}: {given!r} is none of {', '.join(known)}"
                    )

    def open(self) -> Source[Record]:
        """Opens a split; see `SourceConfig.open`."""
        if self.size**2 > self.max_pixels:
            raise InputError(
                f"data.source.max_pixels = {self.max_pixels}: expected at least {self.size**2}, the"
                f" pixels of an image of data.source.size = {self.size}"
            )
        emoji_set.require_webp()
        return EmojiSource(self)


class EmojiSource:
    """The images of a split, concept by concept. They are decoded when the first is read."""

    def __init__(self, config: Emoji):
        """Opens the split without reading an image."""
        self._config = config
        self._languages = [CAPTION_KEYS[key] for key in config.caption_keys or CAPTION_KEYS]
        self._styles = config.styles or tuple(style.name for style in emoji_set.STYLES)
        self._pairs = [
            (concept, style)
            for concept, style in emoji_set.pairs(config.split)
            if emoji_set.STYLES[style].name in self._styles
        ]

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._pairs)

    def describe(self) -> str:
        """Returns one line with the number of images and what they are."""
        text = self._config.caption
        said = f", each captioned {text!r}" if text else ""
        return (
            f"{len(self)} embedded emoji, split {self._config.split!r} of"
            f" {len(emoji_set.concepts())} concepts in {len(self._styles)}"
            f" style{'s' if len(self._styles) > 1 else ''}{said}"
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
        image = emoji_set.tile(*numbers, self._config.size)
        own = [emoji_set.caption(concept, style, language) for language in self._languages]
        captions = [self._config.caption] if self._config.caption else own
        return Record(self.key(i), image, tuple(captions))
