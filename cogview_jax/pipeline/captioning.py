"""Image to text: captions, and how well a text fits an image (CapLoss)."""

import itertools
from collections.abc import Sequence

import numpy as np

from cogview_jax.pipeline.parts import Parts
from cogview_jax.pipeline.prompts import Prompts, need_one_each
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import to_host
from cogview_jax.sampling.batching import batch_rows, batches
from cogview_jax.sampling.engine import CHUNK, SamplingRequest, Span
from cogview_jax.sampling.options import SamplingConfig, SamplingOptions
from cogview_jax.sampling.scoring import token_log_probs
from cogview_jax.tokenizers.layout import right_padded


class Captioning:
    """What a transformer of the caption layout does (CogView, section 3.2)."""

    def __init__(self, parts: Parts, prompts: Prompts):
        """`prompts` encodes the texts that are scored."""
        self.parts, self.prompts = parts, prompts

    @property
    def default_sampling(self) -> SamplingConfig:
        """How captions are sampled unless the caller says: the most likely token each time."""
        return self.parts.sampling_over(SamplingConfig(temperature=0.0))

    def caption(self, images: np.ndarray, options: SamplingOptions) -> list[str]:
        """A text for each image; see `CogView.caption`."""
        self._need()
        if not len(images):
            raise InputError("caption got no image")
        config = options.config(self.default_sampling)
        config.need_no_guidance("a caption")
        layout, span = self.parts.layout, Span.of_text(self.parts.layout)
        codes = self.parts.encode(images, self.parts.codec.config.grid).reshape(len(images), -1)
        requests = [SamplingRequest(row.tobytes().hex(), options.seed, 0, config) for row in codes]
        prompts = [layout.tokens({"image": row}) for row in codes]
        texts: list[str] = []
        for tokens in self.parts.engine.sample(requests, prompts, span, options.batch_size):
            texts += [self._text_before(row, span.end) for row in tokens]
            options.report(len(tokens))
        return texts

    def score(
        self, images: np.ndarray, texts: Sequence[str], options: SamplingOptions
    ) -> np.ndarray:
        """CapLoss of each pair, float32 [b]; see `CogView.score`."""
        self._need()
        images = np.asarray(images)
        need_one_each(texts, images, "score")
        parts, layout = self.parts, self.parts.layout
        model, vocabulary = parts.engine.model, layout.vocabulary
        size = batch_rows(model, options.batch_size, layout.length, len(texts))
        found = self.prompts.pieces_of(texts)
        pieces = [found[text] for text in texts]
        scores = np.zeros(len(texts), np.float32)
        # Padded to one length, so that no text compiles a program of its own. The pivots of sparse
        # attention would follow the padding.
        longest = layout.region("text").length
        counts = [len(each) if model.config.sparse else longest for each in pieces]
        for count in sorted(set(counts)):
            alike = np.array([i for i, each in enumerate(counts) if each == count])
            for index, own in batches(len(alike), size):
                chosen = alike[index]
                codes = parts.encode(images[chosen], parts.codec.config.grid)
                # Without the end of the text, which is none of its tokens.
                rows = [
                    layout.tokens({"image": row.ravel(), "text": pieces[i]})[:-1]
                    for row, i in zip(codes, chosen, strict=True)
                ]
                before = len(rows[0]) - len(pieces[chosen[0]])
                tokens, valid = right_padded(rows, before + count)
                log_probs = token_log_probs(
                    parts.engine.params,
                    tokens,
                    np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape),
                    model=model,
                    count=count,
                    first=vocabulary.text_start,
                    last=vocabulary.size,
                    valid=valid,
                )
                for i, found_of in zip(chosen[:own], to_host(log_probs), strict=False):
                    scores[i] = -np.mean(found_of[: len(pieces[i])])
                options.report(own)
        return scores

    def compile(self) -> None:
        """Compiles every program of `caption` and `score` with a batch size of 1."""
        layout, size = self.parts.layout, self.parts.codec.config.image_size
        image = np.zeros((1, size, size, 3), np.uint8)
        self.score(image, ["a"], SamplingOptions(batch_size=1))
        self.caption(image, SamplingOptions(batch_size=1))
        # A text that is not ended early.
        codes = np.zeros(layout.region("image").length, np.int32)
        prompt, span = layout.tokens({"image": codes}), Span.of_text(layout)
        for _ in self.parts.engine.stream(SamplingRequest(""), prompt, span, CHUNK):
            pass

    def _need(self) -> None:
        self.parts.need("transformer", "text", "codec")
        self.parts.need_task("caption")

    def _text_before(self, ids: np.ndarray, end: int | None) -> str:
        """The text of the tokens up to the first `end`, or of all within the region."""
        layout, text = self.parts.layout, self.parts.tokenizer
        own = itertools.takewhile(lambda i: i != end, ids[: layout.region("text").length])
        pieces = [int(i) - layout.vocabulary.text_start for i in own]
        # The vocabulary may have room for more text tokens than there are.
        return text.decode([piece for piece in pieces if piece < len(text)])
