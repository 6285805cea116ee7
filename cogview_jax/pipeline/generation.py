"""Text to image: whole images, the rest of given ones, and an image row by row."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from cogview_jax.pipeline.parts import Parts
from cogview_jax.pipeline.prompts import Prompts
from cogview_jax.runtime.bounds import MOST_IMAGES, need_count
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.processes import log
from cogview_jax.sampling.batching import fitted
from cogview_jax.sampling.engine import SamplingRequest, Span
from cogview_jax.sampling.options import SamplingConfig, SamplingOptions

#: The value of pixels that are not sampled yet.
GREY = 128


class Generation:
    """Samples the codes of images (CogView, arXiv 2105.13290, section 2)."""

    def __init__(self, parts: Parts, prompts: Prompts):
        """Nothing was sampled yet."""
        self.parts, self.prompts = parts, prompts
        self._spoke_of_guidance = False

    @property
    def default_sampling(self) -> SamplingConfig:
        """How images are sampled unless the caller says: as the bundle recommends."""
        return self.parts.sampling_over(SamplingConfig())

    def sample_codes(
        self, requests: Sequence[SamplingRequest], batch_size: int | None = None
    ) -> Iterator[np.ndarray]:
        """The codes of each request's image, batch by batch and in order: int32 [b, grid, grid].

        Raises:
            InputError: a prompt that `Prompts.pieces_of` refuses, or a seed or batch size that is
                out of range; at once, not at the first batch.
        """
        rows = self.prompt_rows([request.prompt for request in requests])
        return self._sample(requests, [rows[request.prompt] for request in requests], 0, batch_size)

    def count_of(self, prompts: Sequence[str], num_images: int) -> int:
        """How many images `generate_codes` gives in all; InputError as there."""
        if not len(prompts):
            raise InputError("generate needs a list of at least one prompt")
        need_count("num_images", num_images, MOST_IMAGES // len(prompts))
        return len(prompts) * num_images

    def generate_codes(
        self, prompts: Sequence[str], num_images: int, options: SamplingOptions
    ) -> np.ndarray:
        """`num_images` for every prompt: int32 [prompts, num_images, grid, grid].

        Raises:
            InputError: as `sample_codes`; no prompt, no image, or more than MOST_IMAGES.
        """
        self.parts.need("transformer", "text")
        self.count_of(prompts, num_images)
        config = options.config(self.default_sampling)
        requests = [
            SamplingRequest(prompt, options.seed, index, config)
            for prompt in prompts
            for index in range(num_images)
        ]
        codes = _gathered(self.sample_codes(requests, options.batch_size), options)
        return codes.reshape(len(prompts), num_images, *codes.shape[1:])

    def complete(
        self,
        image: np.ndarray,
        keep_rows: int,
        text: str,
        num_images: int,
        options: SamplingOptions,
    ) -> np.ndarray:
        """`num_images` images that begin as `image` does: int32 [num_images, grid, grid].

        Raises:
            InputError: as `complete_codes`.
        """
        need_count("num_images", num_images, MOST_IMAGES)
        self.parts.need("transformer", "text")
        config = options.config(self.default_sampling)
        requests = [
            SamplingRequest(text, options.seed, index, config) for index in range(num_images)
        ]
        sampled = self.complete_codes(
            np.asarray(image)[None], keep_rows, requests, [0] * num_images, options.batch_size
        )
        return _gathered(sampled, options)

    def complete_codes(
        self,
        images: np.ndarray,
        keep_rows: int,
        requests: Sequence[SamplingRequest],
        which: Sequence[int],
        batch_size: int | None = None,
    ) -> Iterator[np.ndarray]:
        """As `sample_codes`, of images whose upper rows of codes are given.

        Args:
            images: uint8 [n, h, w, 3], of the codec's size.
            keep_rows: how many rows of their codes are kept.
            requests: one for each result; the prompt describes the whole image.
            which: the image of each request.
            batch_size: requests at a time.

        Raises:
            InputError: as `sample_codes`; an image has another size, or no row or all would be
                sampled.
        """
        self.parts.need("codec")
        rows = self.prompt_rows([request.prompt for request in requests])
        grid, images = self.parts.layout_config.grid, np.asarray(images)
        if not 0 <= keep_rows < grid:
            raise InputError(f"keep_rows {keep_rows}: expected 0 to {grid - 1}")
        kept = self.parts.encode(images, self.parts.codec.config.grid)[:, :keep_rows].reshape(
            len(images), -1
        )
        prompts = [
            np.concatenate([rows[request.prompt], kept[i]])
            for request, i in zip(requests, which, strict=True)
        ]
        return self._sample(requests, prompts, kept.shape[1], batch_size)

    def decoded(
        self,
        sampled: Iterator[np.ndarray],
        requests: Sequence[SamplingRequest],
        batch_size: int | None = None,
    ) -> Iterator[np.ndarray]:
        """The images of the batches of codes that `requests` give: uint8 [b, h, w, 3] each.

        The decoder is compiled while the first batch is sampled. A last batch that is smaller is
        filled up, so that it needs no program of its own.
        """
        count, most = len(requests), self.parts.engine.batch_size(requests, batch_size)
        size = min(fitted(count, most), count)
        with self.parts.decode_ahead(size):
            first = next(sampled)
        for codes in itertools.chain([first], sampled):
            whole = np.resize(codes, (size, *codes.shape[1:]))
            yield self.parts.decode(whole)[: len(codes)]

    def stream(self, prompt: str, seed: int, sampling: SamplingConfig) -> Iterator[np.ndarray]:
        """The image so far, uint8 [h, w, 3], after every row of codes; below it is grey.

        The last one is the image of index 0 that `sample_codes` gives for prompt and seed.
        """
        self.parts.need("transformer", "text", "codec")
        row, codec = self.prompt_rows([prompt])[prompt], self.parts.codec.config
        self._say_of_guidance([sampling])
        request, span = SamplingRequest(prompt, seed, 0, sampling), Span.of_image(self.parts.layout)
        sampled = np.zeros(0, np.int32)
        for part in self.parts.engine.stream(request, row, span, codec.grid):
            sampled = np.concatenate([sampled, part])
            if len(sampled) % codec.grid:
                continue
            yield self.preview(sampled.reshape(-1, codec.grid))

    def preview(self, codes: np.ndarray) -> np.ndarray:
        """The image so far of the first rows of codes, int [rows, grid]: uint8 [h, w, 3]."""
        codec = self.parts.codec.config
        # The decoder looks a little ahead: the last row stands for those to come.
        whole = np.pad(codes, ((0, codec.grid - len(codes)), (0, 0)), mode="edge")
        pixels = self.parts.decode(whole[None])[0].copy()
        pixels[len(codes) * codec.downsampling :] = GREY
        return pixels

    def prompt_rows(self, prompts: Sequence[str]) -> Mapping[str, np.ndarray]:
        """The tokens before the first code, of every prompt: int32 [at most the prompt length]."""
        self.parts.need("transformer", "text")
        self.parts.need_task("text_to_image")
        found = self.prompts.pieces_of(prompts)
        return {prompt: self.parts.layout.tokens({"text": found[prompt]}) for prompt in found}

    def _sample(
        self,
        requests: Sequence[SamplingRequest],
        prompts: Sequence[np.ndarray],
        given: int,
        batch_size: int | None,
    ) -> Iterator[np.ndarray]:
        """The images that continue each prompt, which ends with `given` codes."""
        self._say_of_guidance([request.sampling for request in requests])
        span, grid = Span.of_image(self.parts.layout, given), self.parts.layout_config.grid
        sampled = self.parts.engine.sample(requests, prompts, span, batch_size)

        def each_batch() -> Iterator[np.ndarray]:
            done = 0
            for tokens in sampled:
                before = [row[len(row) - given :] for row in prompts[done : done + len(tokens)]]
                done += len(tokens)
                codes = np.concatenate([np.stack(before), tokens], axis=1)
                yield codes.reshape(-1, grid, grid)

        return each_batch()

    def _say_of_guidance(self, configs: Sequence[SamplingConfig]) -> None:
        """One line, once, where guidance compares with what the model may not have learned."""
        guidances = [config.guidance for config in configs if config.guidance != 1]
        transformer = self.parts.transformer
        assert transformer is not None, "need('transformer') comes first"
        dropped = transformer.drop_captions
        if not guidances or dropped or self._spoke_of_guidance:
            return
        self._spoke_of_guidance = True
        learned = (
            "nobody has recorded whether this model has learned without captions too"
            if dropped is None
            else "this model has learned with captions alone (drop_captions 0)"
        )
        log(
            f"guidance {guidances[0]}: {learned}; images may be smeared: leave it at 1, or train"
            " with --config.drop_captions=0.1"
        )


def _gathered(batches: Iterator[np.ndarray], options: SamplingOptions) -> np.ndarray:
    """All batches as one array; `progress` is told the length of each as it comes."""
    found = []
    for batch in batches:
        options.report(len(batch))
        found.append(batch)
    return np.concatenate(found)
