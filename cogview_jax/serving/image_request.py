"""What a client asks of images, from the fields that OpenAI's clients send and our own."""

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from cogview_jax.runtime.errors import InputError
from cogview_jax.sampling.options import SamplingConfig, SamplingSettings
from cogview_jax.serving.api_error import ApiError
from cogview_jax.serving.fields import Fields

#: Fields of OpenAI's API, and those that are ours.
STANDARD = ("prompt", "model", "n", "size", "response_format", "stream", "partial_images", "user")
OWN = ("seed", "temperature", "top_k", "top_p", "guidance", "candidates")
#: Fields of OpenAI's API that change nothing here, with the values that are no lie.
WITHOUT_EFFECT = {
    "quality": None,
    "style": None,
    "moderation": None,
    "safety_identifier": None,
    "input_fidelity": None,
    "output_compression": None,
    "background": ("auto", "opaque"),
    "output_format": ("png",),
}
FIELDS = (*STANDARD, *OWN, *WITHOUT_EFFECT)


@dataclass(frozen=True)
class Offer:
    """What a server has for clients.

    Attributes:
        name: of the model.
        size: of its images, in pixels.
        larger: the size after upsampling, None without.
        grid: rows of codes of an image, each of which may be shown.
        ranks: whether there is a model that chooses among candidates.
        sampling: how images are sampled where a request does not say.
        most_images: that a request may sample.
        upscales: sizes of images that are upsampled to twice that.
        upscales_by_text: whether that needs a text.
        prompts: examples, as the bundle has them.
    """

    name: str
    size: int
    larger: int | None
    grid: int
    ranks: bool
    sampling: SamplingConfig
    most_images: int
    upscales: tuple[int, ...] = ()
    upscales_by_text: bool = False
    prompts: tuple[str, ...] = ()

    @property
    def sizes(self) -> list[str]:
        """The sizes that a request may ask for."""
        return [f"{size}x{size}" for size in (self.size, self.larger) if size]


@dataclass(frozen=True)
class ImageRequest:
    """Images of one prompt.

    Attributes:
        prompt: as the client wrote it.
        sampling: temperature, filters and guidance.
        seed: of the random numbers.
        n: images that are sent, of n x candidates that are sampled.
        candidates: for each image that is sent.
        upsampled: whether they are sent at twice their size.
        stream: whether events are sent.
        partial_images: images on the way, of each; 0 without `stream`, and of candidates.
    """

    prompt: str
    sampling: SamplingConfig
    seed: int
    n: int = 1
    candidates: int = 1
    upsampled: bool = False
    stream: bool = False
    partial_images: int = 0

    @classmethod
    def read(cls, fields: Fields, offer: Offer) -> "ImageRequest":
        """From the fields of a request; ApiError names the one that is wrong."""
        prompt = fields.text("prompt")
        check_model(fields, offer.name)
        fields.choice("response_format", ("b64_json",), "b64_json")
        for name, allowed in WITHOUT_EFFECT.items():
            if allowed is not None:
                fields.choice(name, allowed, allowed[0])
        candidates = fields.integer("candidates", 1, 1, offer.most_images)
        if candidates > 1 and not offer.ranks:
            message = "candidates: this server has nothing to choose by (--rerank_with)"
            raise ApiError(400, message, "candidates")
        n = fields.integer("n", 1, 1, offer.most_images)
        if n * candidates > offer.most_images:
            message = f"n {n} times candidates {candidates}: expected at most {offer.most_images}"
            raise ApiError(400, message, "n")
        size = fields.choice("size", ("auto", *offer.sizes), "auto")
        stream = fields.flag("stream")
        partial_images = fields.integer("partial_images", 0, 0, offer.grid - 1)
        if partial_images and (not stream or candidates > 1):
            why = "candidates are sent when all are finished" if stream else "they need stream true"
            message = f"partial_images {partial_images}: expected 0, since {why}"
            raise ApiError(400, message, "partial_images")
        return cls(
            prompt,
            sampling_of(fields, offer.sampling),
            fields.integer("seed", secrets.randbelow(2**32), 0, 2**32 - 1),
            n,
            candidates,
            size != "auto" and size != offer.sizes[0],
            stream,
            partial_images,
        )

    @property
    def indices(self) -> range:
        """Of the images that are sampled."""
        return range(self.n * self.candidates)

    def frames(self, grid: int) -> dict[int, int]:
        """After how many rows of codes there is a partial image, and its number."""
        count = self.partial_images
        return {-(-grid * (i + 1) // (count + 1)): i for i in range(count)}

    def facts(self, name: str, index: int) -> Mapping[str, Any]:
        """How an image was made, for its file."""
        made = {"prompt": self.prompt, "seed": self.seed, "index": index, "model": name}
        return made | asdict(self.sampling)


def sampling_of(fields: Fields, usual: SamplingConfig) -> SamplingConfig:
    """How tokens are chosen: as the fields say, over what is usual."""
    top_k = fields.integer("top_k", usual.top_k, 0, 2**31 - 1)
    names = ("temperature", "top_p", "guidance")
    named: dict[str, Any] = {name: fields.number(name) for name in names}
    for name, value in named.items():
        try:
            SamplingSettings(**{name: value})
        except (InputError, OverflowError) as error:
            raise ApiError(400, str(error), name) from None
    return SamplingSettings(**named).over(replace(usual, top_k=top_k))


def check_model(fields: Fields, name: str) -> None:
    """ApiError where a request is for another model, or names its user in another way than text."""
    fields.text("user", "")
    if (asked := fields.text("model", name)) != name:
        message = f"there is no model {asked[:100]!r} here; choices: {name}"
        raise ApiError(404, message, "model", "model_not_found")
