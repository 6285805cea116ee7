"""Reads the embedded images with captions in two languages: `data.source.kind = "emoji"`."""

from dataclasses import dataclass
from typing import Literal

from cogview_jax.data import emoji_set, emoji_words
from cogview_jax.data.emoji_words import Colour
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
        more_words: give a record more captions, with articles and colours and without a style, and
            add images in other colours than their own, see `emoji_words`.
        size: height and width of an image in pixels, at most 64. Smaller ones are averages of the
            pixels of the embedded ones.
    """

    kind: Literal["emoji"] = "emoji"
    split: Literal["train", "held_out"] = "train"
    caption_keys: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    caption: str = ""
    more_words: bool = False
    size: int = emoji_set.TILE

    def __post_init__(self):
        super().__post_init__()
        require_range(self, "size", at_least=8, at_most=emoji_set.TILE)
        if self.caption and self.more_words:
            raise SettingError(f"caption = {self.caption!r} and more_words: choose one of the two")
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
    """The images of a split, concept by concept, each followed by itself in other colours."""

    def __init__(self, config: Emoji):
        """Opens the split. Images are decoded when the first is read, or here for more words."""
        self._config = config
        self._languages = [CAPTION_KEYS[key] for key in config.caption_keys or CAPTION_KEYS]
        self._styles = config.styles or tuple(style.name for style in emoji_set.STYLES)
        # Concept, style, and the colours that an image was turned from and to.
        self._images: list[tuple[int, int, tuple[Colour, Colour] | None]] = []
        for concept, style in emoji_set.pairs(config.split):
            if emoji_set.STYLES[style].name in self._styles:
                self._images.append((concept, style, None))
                if config.more_words:
                    turns = emoji_words.other_colours(concept, style)
                    self._images += [(concept, style, turn) for turn in turns]

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._images)

    def describe(self) -> str:
        """Returns one line with the number of images and what they are."""
        text = self._config.caption
        said = f", each captioned {text!r}" if text else ""
        if turned := sum(turn is not None for *_, turn in self._images):
            said = f", {turned} of them in other colours"
        return (
            f"{len(self)} embedded emoji, split {self._config.split!r} of"
            f" {len(emoji_set.concepts())} concepts in {len(self._styles)}"
            f" style{'s' if len(self._styles) > 1 else ''}{said}"
        )

    def key(self, i: int) -> str:
        """Returns style and code of image `i`: "emoji/flat/1f98b", or "emoji/flat/1f98b/blue"."""
        concept, style, turn = self._images[i]
        name = f"emoji/{emoji_set.STYLES[style].name}/{emoji_set.concepts()[concept].code}"
        return f"{name}/{turn[1].en}" if turn else name

    def __getitem__(self, i: int) -> Record:
        """Reads image `i`.

        Raises:
            InputError: the files of the package are damaged.
            SystemFault: the machine cannot read them.
        """
        concept, style, turn = self._images[i]
        image = emoji_set.tile(concept, style)
        if turn:
            image = emoji_words.turned(image, *turn)
        return Record(self.key(i), emoji_set.resized(image, self._config.size), self.captions(i))

    def captions(self, i: int) -> tuple[str, ...]:
        """The captions of image `i`, which is not turned or resized; see `source.Captioned`."""
        if self._config.caption:
            return (self._config.caption,)
        numbers, turn = self._images[i][:2], self._images[i][2]
        concept, style = emoji_set.concepts()[numbers[0]], emoji_set.STYLES[numbers[1]]
        if not self._config.more_words:
            return tuple(emoji_set.caption(concept, style, each) for each in self._languages)
        colour = turn[1] if turn else emoji_words.colour_of(emoji_set.tile(*numbers), style)
        return tuple(
            text
            for language in self._languages
            for text in emoji_words.wordings(concept, style, language, colour, own=turn is None)
        )
