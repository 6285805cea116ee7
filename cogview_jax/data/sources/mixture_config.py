"""The settings of mixtures: of sources, `data.source.kind = "mixture"`, and of token stores."""

from dataclasses import dataclass, field, replace
from typing import Literal

from cogview_jax.data.records import Record
from cogview_jax.data.sources.mixture import Mixture, Named, Part, check_names
from cogview_jax.data.sources.source import Source, SourceConfig, opened
from cogview_jax.runtime.config import SettingError, require_range
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.paths import require_paths

#: The largest weight of a part.
MOST_WEIGHT = 1e9


@dataclass(frozen=True)
class SourcePart:
    """A source of a mixture.

    Attributes:
        source: where its images come from; any kind but mixture.
        weight: its share of the rows that training reads is this, divided by the sum of the weights
            of all parts, whatever the number of its records.
    """

    source: SourceConfig
    weight: float = 1.0

    def __post_init__(self):
        require_range(self, "weight", above=0, at_most=MOST_WEIGHT)
        if isinstance(self.source, SourceMixture):
            kinds = sorted(SourceConfig.kinds.keys() - {self.source.kind})
            raise SettingError(
                f"source.kind = {self.source.kind!r}: a part of a mixture is no mixture; choices"
                f" are {', '.join(kinds)}"
            )


@dataclass(frozen=True)
class MixedStore:
    """A token store of a mixture.

    Attributes:
        store: the token store that `prepare` made.
        weight: its share of the rows that training reads is this, divided by the sum of all
            weights, whatever the number of its records.
    """

    store: str = ""
    weight: float = 1.0

    def __post_init__(self):
        require_paths(self, "store")
        require_range(self, "weight", above=0, at_most=MOST_WEIGHT)
        if not self.store:
            raise SettingError("store is empty: name a token store, such as runs/photos/tokens")


@dataclass(frozen=True, kw_only=True)
class SourceMixture(SourceConfig):
    """The settings of several sources that are read as one stream.

    `require_captions` and `max_pixels` hold for all parts; a part may ask for captions or fewer
    pixels of its own only where the mixture does not.

    Attributes:
        kind: "mixture".
        parts: a section for each source under a name of its own, which the names of its records
            then begin with.
    """

    kind: Literal["mixture"] = "mixture"
    parts: dict[str, SourcePart] = field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        check_names(self.parts, "parts")

    def open(self) -> Source[Record]:
        """Opens all parts; see `SourceConfig.open`."""
        if not self.parts:
            raise InputError(
                "data.source.parts is empty: name the parts of the mixture, such as"
                " --config.data.source.parts.photos.source.kind=folder"
                " --config.data.source.parts.photos.source.path=my_photos"
                " --config.data.source.parts.photos.weight=2"
            )
        return Mixture(
            [
                Part(name, part.weight, Named(name, self._opened(name, part.source)))
                for name, part in self.parts.items()
            ]
        )

    def _opened(self, name: str, config: SourceConfig) -> Source[Record]:
        shared = replace(
            config,
            require_captions=config.require_captions and self.require_captions,
            max_pixels=min(config.max_pixels, self.max_pixels),
        )
        section = f"data.source.parts.{name}"
        try:
            return opened(shared)
        except InputError as error:
            # A kind knows its settings as those of data.source.
            message = str(error).replace("data.source.", f"{section}.source.")
            told = message if section in message else f"{section}: {message}"
            raise InputError(told) from error
