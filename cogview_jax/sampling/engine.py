"""The engine: requests in, tokens out. A request is a value, and its tokens depend on it alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.bounds import need_seed
from cogview_jax.runtime.hardware import trim_heap
from cogview_jax.runtime.mesh import to_host
from cogview_jax.sampling.batching import batch_rows, batches, min_batch
from cogview_jax.sampling.decode import RowSeeds, in_parts, row_seeds
from cogview_jax.sampling.filters import row_settings
from cogview_jax.sampling.options import SamplingConfig
from cogview_jax.sampling.parallel import Windows, in_windows, usable_window
from cogview_jax.tokenizers.layout import Layout, left_padded

#: Tokens of a text between two looks at whether all have ended.
CHUNK = 8


@dataclass(frozen=True)
class SamplingRequest:
    """One result that is asked for.

    Attributes:
        prompt: what it continues, as text; with seed and index it decides the random numbers.
        seed: of the random numbers, 0 to 2**32 - 1.
        index: which of the results of its prompt this is, from 0.
        sampling: temperature, filters and guidance.
    """

    prompt: str
    seed: int = 0
    index: int = 0
    sampling: SamplingConfig = SamplingConfig()


@dataclass(frozen=True)
class Span:
    """The part of a sequence that is sampled.

    Attributes:
        prompt: tokens before it, padded to the longest there can be: one compilation for all.
        count: how many tokens are sampled.
        first, last: the ids that may be sampled, [first, last).
        end: the id that ends a row early; None where every row has `count` tokens.
        given: how many tokens every prompt ends with that belong to the region already.
        above: how many places before a token is one that it may be like: the code above.
    """

    prompt: int
    count: int
    first: int
    last: int
    end: int | None = None
    given: int = 0
    above: int = 1

    @classmethod
    def of_image(cls, layout: Layout, given: int = 0) -> "Span":
        """The codes of the layout's image, of which the first `given` belong to the prompt."""
        first, last = layout.allowed("image")
        prompt = layout.prompt_length("image") + given
        region = layout.region("image")
        count = region.length - given
        return cls(prompt, count, first, last, given=given, above=region.grid)

    @classmethod
    def of_text(cls, layout: Layout) -> "Span":
        """The layout's text, and the [PAD] that ends it: the id behind the last text token."""
        first, end = layout.allowed("text")
        count = layout.region("text").length + 1
        return cls(layout.prompt_length("text"), count, first, end + 1, end=end)


class Engine:
    """Samples requests in batches; requests of different settings share a batch.

    Rows are independent of each other, so the batch size changes no result. No value of a setting
    compiles anything; whether any row of a batch has guidance does, since it computes twice as many
    rows.
    """

    def __init__(self, model: Transformer, params: Mapping[str, Any], layout: Layout):
        """Params are those of `model`, one set a layer (`models.layer_params.unstack_arrays`)."""
        self.model, self.params, self.layout = model, params, layout

    def sample(
        self,
        requests: Sequence[SamplingRequest],
        prompts: Sequence[np.ndarray],
        span: Span,
        batch_size: int | None = None,
    ) -> Iterator[np.ndarray]:
        """The tokens of each request, batch by batch and in order: int32 [b, at most span.count].

        Args:
            requests: what is asked for.
            prompts: the tokens that each continues, int32 [at most span.prompt].
            span: what is sampled.
            batch_size: requests at a time; None for what free memory has room for.

        Raises:
            InputError: a seed or the batch size is out of range; at once, not at the first batch.
        """
        for seed in {request.seed for request in requests}:
            need_seed(seed)
        window = self._window(requests, span)
        size = self.batch_size(requests, batch_size)

        def each_batch() -> Iterator[np.ndarray]:
            every = span.count if span.end is None else CHUNK
            for index, own in batches(len(requests), size):
                parts = self._parts(
                    [requests[i] for i in index], [prompts[i] for i in index], span, every, window
                )
                tokens = np.zeros((len(index), 0), np.int32)
                for part in parts:
                    tokens = np.concatenate([tokens, part], axis=1)
                    if span.end is not None and (tokens[:own] == span.end).any(axis=1).all():
                        break
                trim_heap()  # what programs were compiled in, and their caches
                yield tokens[:own]

        return each_batch()

    def batch_size(self, requests: Sequence[SamplingRequest], given: int | None = None) -> int:
        """How many of the requests `sample` takes at a time; InputError as there."""
        each = 2 if any(request.sampling.guidance != 1 for request in requests) else 1
        return batch_rows(self.model, given, each * self.layout.length, len(requests))

    def stream(
        self, request: SamplingRequest, prompt: np.ndarray, span: Span, every: int
    ) -> Iterator[np.ndarray]:
        """The tokens of one request as they are sampled, about `every` at a time: int32 [n]."""
        rows, window = min_batch(), self._window([request], span)
        for part in self._parts([request] * rows, [prompt] * rows, span, every, window):
            yield part[0]

    def _parts(
        self,
        requests: Sequence[SamplingRequest],
        prompts: Sequence[np.ndarray],
        span: Span,
        every: int,
        window: int,
    ) -> Iterator[np.ndarray]:
        """One batch in parts of about `every` tokens: int32 [b, n]."""
        if window > 1:
            done = 0
            for windows in self._windows(requests, prompts, span, window, every):
                line = to_host(windows.line)[: len(requests), 1 : 1 + span.count]
                yield line[:, done : done + every]
                done += every
            return
        tokens, valid, rows, keys, guide = self._batch(requests, prompts, span)
        settings = row_settings([request.sampling for request in requests])
        for part in in_parts(
            self.params,
            tokens,
            valid,
            keys,
            settings,
            rows=rows,
            every=every,
            model=self.model,
            count=span.count,
            first=span.first,
            last=span.last,
            guide=guide,
        ):
            yield to_host(part)[: len(requests)]

    def in_windows(
        self,
        requests: Sequence[SamplingRequest],
        prompts: Sequence[np.ndarray],
        span: Span,
        window: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """One batch by parallel decoding: its tokens, int32 [b, span.count], and passes, int32 [b].

        See `parallel.decode_parallel`; for the other arguments see `sample`.
        """
        (whole,) = self._windows(requests, prompts, span, window, span.count)
        line, passes = to_host(whole.line), to_host(whole.passes)
        return line[: len(requests), 1 : 1 + span.count], passes[: len(requests)]

    def _windows(
        self,
        requests: Sequence[SamplingRequest],
        prompts: Sequence[np.ndarray],
        span: Span,
        window: int,
        every: int,
    ) -> Iterator[Windows]:
        """One batch by parallel decoding, see `parallel.in_windows`."""
        tokens, valid, rows, keys, guide = self._batch(requests, prompts, span)
        return in_windows(
            self.params,
            tokens,
            valid,
            keys,
            row_settings([request.sampling for request in requests]),
            rows=rows,
            every=every,
            model=self.model,
            window=window,
            above=span.above,
            end=span.end,
            count=span.count,
            first=span.first,
            last=span.last,
            guide=guide,
        )

    def _batch(
        self, requests: Sequence[SamplingRequest], prompts: Sequence[np.ndarray], span: Span
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, RowSeeds, bool]:
        """Of one batch: prompts and which of their tokens count, rows, seeds, and guidance.

        See `decode.in_parts` for them.
        """
        guide = any(request.sampling.guidance != 1 for request in requests)
        keys = row_seeds(
            [request.seed for request in requests],
            [request.prompt for request in requests],
            [request.index for request in requests],
        )
        if guide:
            prompts = [*prompts, *self._bare(prompts, span)]
            keys = keys.each(lambda seeds: np.tile(seeds, 2))
        return *self._shared(*left_padded(prompts, span.prompt)), keys, guide

    def _window(self, requests: Sequence[SamplingRequest], span: Span) -> int:
        """The places that go through the model at once: the most that a request asks for."""
        window = max((request.sampling.parallel_window for request in requests), default=0)
        return usable_window(self.model, window, span.count)

    def _bare(self, prompts: Sequence[np.ndarray], span: Span) -> list[np.ndarray]:
        """The prompts without their texts, which guidance compares with."""
        bare = self.layout.tokens({"text": []})
        return [np.concatenate([bare, row[len(row) - span.given :]]) for row in prompts]

    def _shared(
        self, tokens: np.ndarray, valid: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Each prompt once where that halves them at least, and which of them each row continues.

        The caches of a prompt are so computed once for all its requests. Not for sparse attention,
        whose pivots are a row's own.
        """
        _, unlike, place = np.unique(tokens, axis=0, return_index=True, return_inverse=True)
        few = 1 << (len(unlike) - 1).bit_length()
        if 2 * few > len(tokens) or self.model.config.sparse:
            return tokens, valid, None
        unlike = np.resize(unlike, few)
        return tokens[unlike], valid[unlike], place.ravel().astype(np.int32)
