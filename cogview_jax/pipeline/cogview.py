"""`CogView`: a bundle in memory, and what Python users do with it."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Unpack

import jax.numpy as jnp
import numpy as np
from PIL import Image

from cogview_jax.checkpoints.bundle_parts import CodecPart, TransformerPart
from cogview_jax.pipeline.captioning import Captioning
from cogview_jax.pipeline.generation import Generation
from cogview_jax.pipeline.parts import Parts
from cogview_jax.pipeline.prompts import Prompts
from cogview_jax.pipeline.queries import Images, fill_query
from cogview_jax.pipeline.super_resolution import SuperResolution
from cogview_jax.sampling.options import SamplingConfig, SamplingKeywords, SamplingOptions
from cogview_jax.tokenizers.codecs.codec import Codec
from cogview_jax.tokenizers.layout import Layout
from cogview_jax.tokenizers.text import TextTokenizer


class CogView:
    """A trained system: text tokenizer, image tokenizer and transformer, each optional.

    A method that needs a part which is not there raises InputError and names it. Every method that
    samples takes the keywords `sampling` (a `SamplingConfig`), `batch_size` and `progress`; see
    `sampling.options.SamplingOptions`. A result depends on the weights, its own inputs, the seed
    and its index alone: not on the batch size, nor on what is sampled beside it.

    Attributes:
        parts: the parts, and what each does alone.
        generation, captioning, super_resolution: the tasks, with more options than the methods.
        need, need_task: InputError where a part is missing, or of another task.
        encode: uint8 images [b, h, w, 3], h and w multiples of the codec's factor -> codes int32
            [b, rows, columns].
        decode: codes -> uint8 images [b, h, w, 3].
        logits: int32 tokens [b, t] at positions 0..t-1 -> float32 [b, t, vocabulary].
    """

    def __init__(
        self,
        *,
        codec: CodecPart | None = None,
        text: TextTokenizer | None = None,
        transformer: TransformerPart | None = None,
        dtype: Any = jnp.float32,
        encode_dtype: Any = jnp.float32,
        long_prompts: Literal["cut", "refuse"] = "cut",
        name: str = "the bundle",
    ):
        """Puts the parts together.

        Args:
            codec, text, transformer: the parts, as from a `Bundle`.
            dtype: of the arithmetic, or the name of a policy (`runtime.precision`).
            encode_dtype: of the encoder, whatever the rest computes in: another type finds other
                codes.
            long_prompts: whether prompts with more tokens than the text region holds are cut there
                or refused.
            name: what errors call the bundle.
        """
        self.parts = Parts(codec, text, transformer, dtype, encode_dtype, name)
        self.prompts = Prompts(self.parts, long_prompts)
        self.generation = Generation(self.parts, self.prompts)
        self.captioning = Captioning(self.parts, self.prompts)
        self.super_resolution = SuperResolution(self.parts, self.prompts)
        self.need, self.need_task = self.parts.need, self.parts.need_task
        self.encode, self.decode = self.parts.encode, self.parts.decode
        self.logits, self.text = self.parts.logits, text

    @property
    def codec(self) -> Codec:
        """The image tokenizer's module; its sizes are `codec.config`."""
        return self.parts.codec

    @property
    def default_sampling(self) -> SamplingConfig:
        """What the methods that sample take for `sampling` unless they are given it.

        What the bundle recommends, over what is usual for the task of its transformer:
        `SamplingConfig()`, for captions temperature 0, for super-resolution 0.7 or, with released
        weights, 1.02. Another temperature alone is `dataclasses.replace(model.default_sampling,
        temperature=0.9)`.
        """
        self.need("transformer")
        if self.layout.task == "caption":
            return self.captioning.default_sampling
        if self.layout.task == "super_resolution":
            return self.super_resolution.default_sampling
        return self.generation.default_sampling

    @property
    def layout(self) -> Layout:
        """What the transformer's sequences are made of."""
        return self.parts.layout

    def generate(
        self,
        prompts: Sequence[str],
        num_images: int = 1,
        seed: int = 0,
        **keywords: Unpack[SamplingKeywords],
    ) -> list[list[Image.Image]]:
        """Samples `num_images` images for every prompt: a list a prompt, in their order.

        Args:
            prompts: or a single one, which counts as a list of one.
            num_images: for each prompt.
            seed: of the random numbers.
            keywords: see `CogView`.

        Raises:
            InputError: no prompt or no image, more images than MOST_IMAGES, or a prompt that is
                blank, no text, or too long.
        """
        self.parts.need("transformer", "text", "codec")
        prompts = [prompts] if isinstance(prompts, str) else prompts
        with self.parts.decode_ahead(self.generation.count_of(prompts, num_images)):
            codes = self.generate_codes(prompts, num_images, seed, **keywords)
        images = iter(self.decode(codes.reshape(-1, *codes.shape[2:])))
        return [[Image.fromarray(next(images)) for _ in row] for row in codes]

    def generate_codes(
        self,
        prompts: Sequence[str],
        num_images: int = 1,
        seed: int = 0,
        **keywords: Unpack[SamplingKeywords],
    ) -> np.ndarray:
        """The codes of the images of `generate`: int32 [prompts, num_images, rows, columns]."""
        prompts = [prompts] if isinstance(prompts, str) else prompts
        options = SamplingOptions(seed, **keywords)
        return self.generation.generate_codes(prompts, num_images, options)

    def complete(
        self,
        image: np.ndarray,
        keep_rows: int,
        text: str,
        num_images: int = 1,
        seed: int = 0,
        **keywords: Unpack[SamplingKeywords],
    ) -> list[Image.Image]:
        """Images whose upper part is that of another, and whose rest is sampled.

        Args:
            image: uint8 [h, w, 3], of the codec's size.
            keep_rows: how many rows of its codes are kept; 0 is `generate`.
            text: what the whole image shows.
            num_images, seed, keywords: as in `generate`.

        Raises:
            InputError: the image has another size, keep_rows is negative or all rows, or the text
                is blank or too long.
        """
        options = SamplingOptions(seed, **keywords)
        codes = self.generation.complete(image, keep_rows, text, num_images, options)
        return [Image.fromarray(pixels) for pixels in self.decode(codes)]

    def stream(
        self, prompt: str, seed: int = 0, *, sampling: SamplingConfig | None = None
    ) -> Iterator[Image.Image]:
        """The image so far, after every row of codes; below it is grey.

        The last one is the image that `generate` gives for the prompt and the seed. Raises
        InputError at the first image, as `generate` does.
        """
        options = SamplingOptions(seed, sampling)
        config = options.config(self.generation.default_sampling)
        for pixels in self.generation.stream(prompt, seed, config):
            yield Image.fromarray(pixels)

    def caption(
        self, images: np.ndarray, seed: int = 0, **keywords: Unpack[SamplingKeywords]
    ) -> list[str]:
        """A text for each image, of a bundle of the caption layout.

        A text ends where the model says so, and at the latest where its region does.

        Args:
            images: uint8 [b, h, w, 3], of the codec's size.
            seed: of the random numbers.
            keywords: see `CogView`; by default the most likely token is taken each time.

        Raises:
            InputError: the bundle is of another task, there is no image, or it has another size.
        """
        return self.captioning.caption(images, SamplingOptions(seed, **keywords))

    def score(
        self, images: np.ndarray, texts: Sequence[str], **keywords: Unpack[SamplingKeywords]
    ) -> np.ndarray:
        """CapLoss of each pair, float32 [b]: how unlikely a text is for its image.

        The mean cross-entropy of the text's tokens (CogView, section 3.2), of a bundle of the
        caption layout.

        Args:
            images: uint8 [b, h, w, 3].
            texts: one for each.
            keywords: see `CogView`; nothing is sampled.

        Raises:
            InputError: the bundle is of another task, or a text is blank or too long.
        """
        return self.captioning.score(images, texts, SamplingOptions(**keywords))

    def super_resolve(
        self,
        images: np.ndarray,
        texts: Sequence[str] | None = None,
        seed: int = 0,
        *,
        window_candidates: int | None = None,
        back_projection: int | None = None,
        **keywords: Unpack[SamplingKeywords],
    ) -> list[Image.Image]:
        """Images of twice as many rows and columns, of a bundle of the super_resolution layout.

        Images of the layout's smaller size take one window, those of its larger size nine. Released
        weights always take nine.

        Args:
            images: uint8 [b, h, w, 3], squares of either size (`super_resolution.sizes`).
            texts: what each shows; not needed by a model that has learned without text.
            seed: of the random numbers.
            window_candidates: how often each window is sampled; the candidate that is nearest to
                the input when downsampled is kept. By default 1 for released weights and at
                temperature 0, else 16.
            back_projection: rounds of iterative back-projection, which make the output agree with
                the input when it is downsampled. By default 0 for released weights, else 8.
            keywords: see `CogView`; `progress` counts windows.

        Raises:
            InputError: the bundle is of another task, the images have another size, a text is
                blank or too long, or a number is out of range.
        """
        options = SamplingOptions(seed, **keywords)
        batches = self.super_resolution.upsample(
            images, texts, options, window_candidates, back_projection
        )
        return [Image.fromarray(pixels) for batch in batches for pixels in batch]

    def fill(
        self,
        query: str,
        samples: int = 1,
        seed: int = 0,
        *,
        images: Images | None = None,
        image_size: int | None = None,
        sampling: SamplingConfig | None = None,
    ) -> np.ndarray:
        """Samples the places that a query leaves open: int32 [samples, length].

        See `pipeline.queries.fill_query`, which has the arguments and the errors.
        """
        config = SamplingOptions(seed, sampling).config()
        return fill_query(self.parts, query, samples, seed, images, image_size, config)

    def __repr__(self) -> str:
        """The parts, their sizes, the task, the type of the arithmetic, and the devices."""
        return self.parts.describe()
