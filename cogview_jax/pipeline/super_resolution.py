"""Super-resolution: images of twice as many rows and columns, window by window."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from cogview_jax.interop.official.positions import sampling_positions
from cogview_jax.pipeline.parts import Parts
from cogview_jax.pipeline.prompts import Prompts, need_one_each
from cogview_jax.runtime.bounds import MOST_CANDIDATES, MOST_ROUNDS, need_count
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import to_host
from cogview_jax.sampling.back_projection import back_projected, downsampled_mse
from cogview_jax.sampling.batching import batch_rows, batches
from cogview_jax.sampling.decode import row_seeds
from cogview_jax.sampling.options import SamplingConfig, SamplingOptions
from cogview_jax.sampling.parallel import usable_window
from cogview_jax.sampling.super_resolution import Choose, upsampled_codes
from cogview_jax.sampling.windows import Window, WindowPlan, in_nine, released_head
from cogview_jax.tokenizers.layout import size_command


class SuperResolution:
    """What a transformer of the super_resolution layout does (CogView, section 3.1).

    Released weights get the sequences and positions that they expect.
    """

    def __init__(self, parts: Parts, prompts: Prompts):
        """`prompts` encodes the texts of the images."""
        self.parts, self.prompts = parts, prompts

    @property
    def default_sampling(self) -> SamplingConfig:
        """How images are upsampled unless the caller says: released weights as the release does.

        With others, candidates that are more likely are better ones to choose among.
        """
        self.parts.need("transformer")
        usual = SamplingConfig(temperature=self.parts.conventions.upsampling_temperature)
        return self.parts.sampling_over(usual)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes in pixels of the images that can be upsampled, the usual one first.

        That is the size of the images that the codec has learned, if it is one of them.

        Raises:
            InputError: the bundle is of another task.
        """
        self.parts.need("transformer", "codec")
        if not self.parts.conventions.windows_only:
            self.parts.need_task("super_resolution")
        # The released weights have seen windows alone.
        whole = () if self.parts.conventions.windows_only else (self._window,)
        nine = (2 * self._window,) if in_nine(self._window) else ()
        codec = self.parts.codec.config
        sizes = [grid * codec.downsampling for grid in (*whole, *nine)]
        return tuple(sorted(sizes, key=lambda size: size != codec.image_size))

    def plan(self, size: int) -> WindowPlan:
        """The windows that upsample images of `size` pixels; InputError for other sizes."""
        if size not in self.sizes:
            raise InputError(
                f"images of {size} pixels: the bundle upsamples those of"
                f" {' or '.join(map(str, self.sizes))}"
            )
        return WindowPlan.of(size // self.parts.codec.config.downsampling, self._window)

    def upsample(
        self,
        images: np.ndarray,
        texts: Sequence[str] | None,
        options: SamplingOptions,
        window_candidates: int | None = None,
        back_projection: int | None = None,
    ) -> Iterator[list[np.ndarray]]:
        """The images of `CogView.super_resolve` batch by batch: uint8 [2h, 2w, 3] each.

        Raises:
            InputError: as `CogView.super_resolve` does; at once, not at the first batch.
        """
        images = np.asarray(images)
        sampled = self.upsample_codes(images, texts, options, window_candidates)
        rounds = back_projection
        if rounds is None:
            rounds = self.parts.conventions.back_projection_rounds
        need_count("back_projection", rounds, MOST_ROUNDS, 0)

        def each_batch() -> Iterator[list[np.ndarray]]:
            done = 0
            for codes in sampled:
                given = images[done : done + len(codes)]
                yield back_projected(self.parts.decode(codes), given, rounds)
                done += len(codes)

        return each_batch()

    def upsample_codes(
        self,
        images: np.ndarray,
        texts: Sequence[str] | None,
        options: SamplingOptions,
        window_candidates: int | None = None,
    ) -> Iterator[np.ndarray]:
        """The codes of the images of `upsample`, batch by batch: int32 [b, 2g, 2g]."""
        self.parts.need("transformer", "text", "codec")
        layout, engine = self.parts.layout, self.parts.engine
        images = np.asarray(images)
        if texts is None:
            texts = [] if layout.region("text").length else [""] * len(images)
        need_one_each(texts, images, "super_resolve")
        if not len(images):
            raise InputError("super_resolve got no image")
        config = options.config(self.default_sampling)
        config.need_no_guidance("super-resolution")
        usable_window(engine.model, config.parallel_window, layout.length)
        candidates = window_candidates
        if candidates is None:
            # At temperature 0 all candidates are alike.
            usual = self.parts.conventions.upsampling_candidates
            candidates = usual if config.temperature else 1
        need_count("window_candidates", candidates, MOST_CANDIDATES)
        # What takes memory is a row, and every candidate is one.
        rows = batch_rows(engine.model, options.batch_size, layout.length, candidates * len(images))
        plan, pieces = self.plan(images.shape[1]), self.prompts.pieces_of(texts)

        def each_batch() -> Iterator[np.ndarray]:
            for index, own in batches(len(images), max(1, rows // candidates)):
                codes = self.parts.encode(images[index], plan.grid)
                names = [
                    f"{texts[i]} {row.tobytes().hex()}"
                    for i, row in zip(index, codes, strict=True)
                    for _ in range(candidates)
                ]
                keys = row_seeds(options.seed, names, [*range(candidates)] * len(codes))
                heads = [pieces[texts[i]] for i in index]
                larger = upsampled_codes(
                    engine.params,
                    functools.partial(self._head, heads, plan),
                    self._longest(plan),
                    codes,
                    keys.each(lambda seeds: seeds.reshape(-1, candidates)),
                    plan=plan,
                    model=engine.model,
                    last=layout.vocabulary.codes,
                    config=config,
                    choose=self._nearest(images[index], plan),
                    on_window=functools.partial(options.report, own),
                )
                yield larger[:own]

        return each_batch()

    def compile(self) -> None:
        """Compiles every program of `upsample` with a batch size of 1."""
        usual, temperatures = self.default_sampling, {self.default_sampling.temperature}
        if self.parts.conventions.upsampling_candidates > 1:
            temperatures.add(0.0)  # which has one
        for size in self.sizes:
            image, texts = np.zeros((1, size, size, 3), np.uint8), ["a"]
            for temperature in temperatures:
                sampling = dataclasses.replace(usual, temperature=temperature)
                for _ in self.upsample(image, texts, SamplingOptions(0, sampling, 1)):
                    pass

    @property
    def _window(self) -> int:
        """Rows and columns of the codes that one sequence upsamples."""
        return self.parts.layout_config.grid // 2

    def _longest(self, plan: WindowPlan) -> int:
        """Tokens of the longest sequence before a window's target."""
        layout = self.parts.layout
        if not self.parts.conventions.windows_only:
            return layout.prompt_length("image")
        # Up to the first image the rows of pretraining and of super-resolution are the same.
        return layout.prompt_length(layout.images[0].name) + plan.window**2 + 5

    def _head(
        self, texts: Sequence[Sequence[int]], plan: WindowPlan, i: int, source: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What stands before a window's target of image i, and its positions: int32 [n] each."""
        layout, pieces = self.parts.layout, texts[i]
        if not self.parts.conventions.windows_only:
            row = layout.tokens({"text": pieces, "source": source})
            return row, layout.positions_of(row)
        prompt, size = layout.tokens({"text": pieces}), size_command(plan.grid)
        row = released_head(prompt, source, size, layout.vocabulary)
        # A place to sample behind the head makes the whole head one call.
        return row, sampling_positions([*row, -1], layout.vocabulary)[0]

    def _nearest(self, images: np.ndarray, plan: WindowPlan) -> Choose:
        """Chooses the candidate that is nearest to its part of its image when downsampled."""

        def choose(window: Window, candidates: np.ndarray) -> np.ndarray:
            pixels = to_host(self.parts.pixels_of(candidates.reshape(-1, *candidates.shape[2:])))
            pixels = pixels.reshape(*candidates.shape[:2], *pixels.shape[1:])
            given = images[:, None, *window.pixels(images.shape[1] // plan.grid)]
            return downsampled_mse(pixels, given).argmin(axis=1)

        return choose
