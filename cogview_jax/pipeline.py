"""`CogView`: a bundle in memory, and what Python users do with it."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from cogview_jax.checkpoints.bundle import Bundle, CodecPart, TransformerPart
from cogview_jax.data.official_images import official_pixels, official_square
from cogview_jax.data.records import BadRecord
from cogview_jax.models.transformer import for_decoding, unstack_layers
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.hardware import free_memory
from cogview_jax.runtime.mesh import to_host
from cogview_jax.runtime.precision import policy_of
from cogview_jax.runtime.progress import waiting
from cogview_jax.sampling.back_projection import ROUNDS, back_projected, misfits
from cogview_jax.sampling.decode import generate, in_parts, least_rows, sample_keys
from cogview_jax.sampling.fill import fill, seeded_choice
from cogview_jax.sampling.filters import SamplingConfig
from cogview_jax.sampling.magnify import MagnifyPlan, Window, in_nine, released_head
from cogview_jax.sampling.scoring import token_log_probs
from cogview_jax.sampling.super_resolution import CANDIDATES, Choice, magnify
from cogview_jax.tokenizers.codec import Codec, decode_codes, encode_images
from cogview_jax.tokenizers.layout import left_padded, make_layout, size_command
from cogview_jax.tokenizers.official_positions import sampling_positions
from cogview_jax.tokenizers.query import OPEN, parse_query
from cogview_jax.tokenizers.text import TextTokenizer

#: Rows of a sampled batch where none is given and memory has room: more gain little.
BATCH = 64
#: Of the free memory, what the caches of a batch may take; the rest is for what XLA works with.
CACHE_SHARE = 0.4
#: Tokens of a caption between two looks at whether all have ended.
CHUNK = 8
#: What is not drawn yet.
GREY = 128


class CogView:
    """A trained system: text tokenizer, image tokenizer and transformer, each optional.

    A method that needs a part which is not there raises InputError and names it.
    """

    def __init__(
        self,
        *,
        codec: CodecPart | None = None,
        text: TextTokenizer | None = None,
        transformer: TransformerPart | None = None,
        dtype: Any = jnp.float32,
    ):
        """Puts the parts together; `dtype` is that of the arithmetic, or the name of a policy."""
        policy = policy_of(dtype)
        self.text = text
        self.codec_part, self.transformer_part = codec, transformer
        if codec is not None:
            self.codec = Codec(codec.config, policy.compute)
            self._encode = jax.jit(lambda p, c, images: encode_images(self.codec, p, c, images))
            self._decode = jax.jit(lambda p, c, codes: decode_codes(self.codec, p, c, codes))
        if transformer is not None:
            self.layout = make_layout(transformer.layout, transformer.vocabulary)
            self.model = transformer.model.clone(policy=policy)
            self._layers = for_decoding(unstack_layers(transformer.params))
            self._logits = jax.jit(self._full_logits)

    def generate(
        self,
        prompts: Sequence[str],
        num_images: int = 1,
        seed: int = 0,
        *,
        sampling: SamplingConfig | None = None,
        batch_size: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Image.Image]]:
        """Draws `num_images` pictures for every prompt: a list a prompt, in their order.

        A picture depends on the weights, its prompt, the seed and its index, not on the batch size
        or the other prompts. `progress` is told how many pictures were done since the last time.

        Raises:
            InputError: no prompt, no image, or a prompt longer than the text region.
        """
        self.need("transformer", "text", "codec")
        codes = self.generate_codes(
            prompts,
            num_images,
            seed,
            sampling=sampling or SamplingConfig(),
            batch_size=batch_size,
            progress=progress,
        )
        pictures = [self.decode(row) for row in codes]
        return [[Image.fromarray(picture) for picture in row] for row in pictures]

    def generate_codes(
        self,
        prompts: Sequence[str],
        num_images: int,
        seed: int,
        *,
        sampling: SamplingConfig,
        batch_size: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """The codes `generate` draws: int32 [prompts, num_images, rows, columns]."""
        self.need("transformer", "text")
        if num_images < 1:
            raise InputError(f"num_images {num_images}: expected at least 1")
        if isinstance(prompts, str) or not prompts:
            raise InputError("generate needs a list of at least one prompt")
        drawn = self.draw(
            [prompt for prompt in prompts for _ in range(num_images)],
            list(range(num_images)) * len(prompts),
            seed,
            sampling=sampling,
            batch_size=batch_size,
        )
        codes = np.concatenate(list(_told(drawn, progress)))
        return codes.reshape(len(prompts), num_images, *codes.shape[1:])

    def draw(
        self,
        prompts: Sequence[str],
        indices: Sequence[int],
        seed: int,
        *,
        sampling: SamplingConfig,
        batch_size: int | None = None,
    ) -> Iterator[np.ndarray]:
        """The codes of any pictures that `generate` could draw, in batches: int32 [b, g, g] each.

        Args:
            prompts: of each picture.
            indices: which of its prompt's pictures each is, from 0.
            seed, sampling, batch_size: as in `generate`.

        Raises:
            InputError: as `generate` does; at once, not at the first batch.
        """
        self.need("transformer", "text")
        rows = {prompt: self.prompt_tokens(prompt) for prompt in prompts}
        return self._draw(
            [rows[prompt] for prompt in prompts],
            prompts,
            indices,
            seed,
            sampling=sampling,
            batch_size=batch_size,
        )

    def complete(
        self,
        image: np.ndarray,
        keep_rows: int,
        text: str,
        num_images: int = 1,
        seed: int = 0,
        *,
        sampling: SamplingConfig | None = None,
        batch_size: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Image.Image]:
        """Pictures whose upper part is that of another, and whose rest is drawn.

        Args:
            image: uint8 [h, w, 3], of the codec's size.
            keep_rows: how many rows of its codes are kept; 0 is `generate`.
            text: what the whole picture shows.
            num_images, seed, sampling, batch_size, progress: as in `generate`.

        Raises:
            InputError: the image has another size, keeps all or less than nothing, or the text is
                blank or too long.
        """
        if num_images < 1:
            raise InputError(f"num_images {num_images}: expected at least 1")
        drawn = self.draw_rest(
            np.asarray(image)[None],
            keep_rows,
            [text] * num_images,
            range(num_images),
            seed,
            sampling=sampling or SamplingConfig(),
            batch_size=batch_size,
            which=[0] * num_images,
        )
        codes = np.concatenate(list(_told(drawn, progress)))
        return [Image.fromarray(picture) for picture in self.decode(codes)]

    def draw_rest(
        self,
        images: np.ndarray,
        keep_rows: int,
        texts: Sequence[str],
        indices: Sequence[int],
        seed: int,
        *,
        sampling: SamplingConfig,
        batch_size: int | None = None,
        which: Sequence[int] | None = None,
    ) -> Iterator[np.ndarray]:
        """The codes of any pictures that `complete` could draw, in batches: int32 [b, g, g] each.

        Args:
            images: uint8 [n, h, w, 3].
            keep_rows: as in `complete`.
            texts: of each picture to draw.
            indices: which of the pictures of its image and text each is, from 0.
            seed, sampling, batch_size: as in `complete`.
            which: the image of each, its own where None.

        Raises:
            InputError: as `complete` does; at once, not at the first batch.
        """
        self.need("transformer", "text", "codec")
        rows = {text: self.prompt_tokens(text) for text in texts}
        grid, images = self.transformer_part.layout.grid, np.asarray(images)
        if not 0 <= keep_rows < grid:
            raise InputError(f"keep_rows {keep_rows}: expected 0 to {grid - 1}")
        kept = np.concatenate(
            [
                self.encode(images[index])[:own, :keep_rows].reshape(own, -1)
                for index, own in _batches(len(images), BATCH)
            ]
        )
        which = range(len(images)) if which is None else which
        return self._draw(
            [np.concatenate([rows[text], kept[i]]) for text, i in zip(texts, which, strict=True)],
            texts,
            indices,
            seed,
            kept=kept.shape[1],
            sampling=sampling,
            batch_size=batch_size,
        )

    def stream(
        self, prompt: str, seed: int = 0, *, sampling: SamplingConfig | None = None
    ) -> Iterator[Image.Image]:
        """The picture as far as it is drawn, after every row of codes; below it is grey.

        The last is the picture that `generate` gives for the prompt and the seed.

        Raises:
            InputError: at the first picture; as `generate` does.
        """
        self.need("transformer", "text", "codec")
        image, (first, last) = self.layout.region("image"), self.layout.allowed("image")
        row, rows = self.prompt_tokens(prompt), least_rows()
        config, grid = sampling or SamplingConfig(), self.codec.config.grid
        keys = sample_keys(seed, [prompt] * rows, [0] * rows)
        tokens, keys = self._with_bare([row] * rows, keys, 0, config)
        tokens, valid = left_padded(tokens, self.layout.prompt_length("image"))
        parts = in_parts(
            self._layers,
            tokens,
            valid,
            keys,
            every=grid,
            model=self.model,
            count=image.length,
            first=first,
            last=last,
            config=config,
        )
        drawn = np.zeros(0, np.int32)
        for part in parts:
            drawn = np.concatenate([drawn, to_host(part)[0]])
            if len(drawn) % grid:
                continue
            codes = drawn.reshape(-1, grid)
            # What is to come is guessed to go on as it is: the decoder looks a little ahead.
            whole = np.pad(codes, ((0, grid - len(codes)), (0, 0)), mode="edge")
            pixels = self.decode(whole[None])[0].copy()
            pixels[len(codes) * self.codec.config.downsampling :] = GREY
            yield Image.fromarray(pixels)

    def _draw(
        self,
        rows: Sequence[np.ndarray],
        prompts: Sequence[str],
        indices: Sequence[int],
        seed: int,
        *,
        kept: int = 0,
        sampling: SamplingConfig,
        batch_size: int | None,
    ) -> Iterator[np.ndarray]:
        """The pictures that continue each row, batch by batch: int32 [b, grid, grid].

        kept: how many image tokens every row ends with. The others see `sample_keys`.
        """
        image, (first, last) = self.layout.region("image"), self.layout.allowed("image")
        # Prompts are padded to the longest there can be: one compilation for all of them.
        longest = self.layout.prompt_length("image") + kept
        each = 1 if sampling.guidance == 1 else 2
        batch_size = self.batch_size(batch_size, each * self.layout.length)
        keys = sample_keys(seed, prompts, indices)

        def batches() -> Iterator[np.ndarray]:
            for index, own in _batches(len(rows), batch_size):
                tokens, own_keys = self._with_bare(
                    [rows[i] for i in index], keys[index], kept, sampling
                )
                tokens, valid = left_padded(tokens, longest)
                # Those of one prompt share its cache.
                _, unlike, place = np.unique(tokens, axis=0, return_index=True, return_inverse=True)
                few = 1 << (len(unlike) - 1).bit_length()
                shared = 2 * few <= len(tokens) and not self.model.config.sparse
                if shared:
                    unlike = np.resize(unlike, few)
                    tokens, valid = tokens[unlike], valid[unlike]
                drawn = generate(
                    self._layers,
                    tokens,
                    valid,
                    own_keys,
                    rows=place.ravel() if shared else None,
                    model=self.model,
                    count=image.length - kept,
                    first=first,
                    last=last,
                    config=sampling,
                )
                before = [rows[i][len(rows[i]) - kept :] for i in index[:own]]
                codes = np.concatenate([np.stack(before), to_host(drawn)[:own]], axis=1)
                yield codes.reshape(own, image.grid, image.grid)

        return batches()

    def batch_size(self, given: int | None, tokens: int) -> int:
        """Rows of a batch: those given, or as many as free memory has room for, at most BATCH.

        tokens: slots of the key/value cache that a row takes. InputError for less than one row.
        """
        if given is not None:
            if given < 1:
                raise InputError(f"batch_size {given}: expected at least 1")
            return given
        config, free = self.model.config, free_memory(jax.local_devices()[0])
        if free is None:
            return BATCH
        width = np.dtype(self.model.policy.compute).itemsize
        row = 2 * config.layers * config.width * tokens * width
        fits = max(1, int(CACHE_SHARE * free / row))
        return min(BATCH, 1 << (fits.bit_length() - 1))

    def _with_bare(
        self, rows: Sequence[np.ndarray], keys: jax.Array, kept: int, config: SamplingConfig
    ) -> tuple[Sequence[np.ndarray], jax.Array]:
        """Rows that end with `kept` codes, and their keys; for guidance also those without text."""
        if config.guidance == 1:
            return rows, keys
        bare = self.layout.tokens({"text": []})
        without = [np.concatenate([bare, row[len(row) - kept :]]) for row in rows]
        return [*rows, *without], jnp.concatenate([keys, keys])

    def caption(
        self,
        images: np.ndarray,
        seed: int = 0,
        *,
        sampling: SamplingConfig | None = None,
        batch_size: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[str]:
        """What each picture shows, in words: for a bundle whose layout is caption.

        A text ends where the model says so, and at the latest where its region does. It depends on
        the weights, the picture and the seed, not on the other pictures.

        Args:
            images: uint8 [b, h, w, 3], of the codec's size.
            seed: of the draws.
            sampling: the likeliest token each time by default, whatever the seed.
            batch_size: pictures at a time.
            progress: is told how many pictures were done since the last time.

        Raises:
            InputError: the bundle is of another task, there is no image, or it has another size.
        """
        self.need("transformer", "text", "codec")
        self.need_task("caption")
        if not len(images):
            raise InputError("caption got no image")
        batch_size = self.batch_size(batch_size, self.layout.length)
        # The end of a text, [PAD], is the id behind the last piece.
        first, end = self.layout.allowed("text")
        room = self.layout.region("text").length + 1
        config = sampling or SamplingConfig(temperature=0.0)
        config.need_no_guidance("a caption")
        sizes = {"model": self.model, "first": first, "last": end + 1, "config": config}
        sizes |= {"count": room, "every": CHUNK}
        texts = []
        for index, own in _batches(len(images), batch_size):
            codes = self.encode(np.asarray(images)[index]).reshape(len(index), -1)
            tokens = np.stack([self.layout.tokens({"image": row}) for row in codes])
            keys = sample_keys(seed, [row.tobytes().hex() for row in codes], [0] * len(codes))
            valid = np.ones(tokens.shape, bool)
            drawn = np.zeros((len(index), 0), np.int32)
            for part in in_parts(self._layers, tokens, valid, keys, **sizes):
                drawn = np.concatenate([drawn, to_host(part)], axis=1)
                if (drawn[:own] == end).any(axis=1).all():
                    break
            texts += [self._text_before(row, end) for row in drawn[:own]]
            if progress is not None:
                progress(own)
        return texts

    def _text_before(self, ids: np.ndarray, end: int) -> str:
        """The text of pieces up to the first `end`, or of all within the region."""
        pieces = itertools.takewhile(lambda i: i != end, ids[: self.layout.region("text").length])
        pieces = [int(piece) - self.layout.vocabulary.text_start for piece in pieces]
        # The vocabulary may have room for more pieces than there are.
        return self.text.decode([piece for piece in pieces if piece < len(self.text)])

    def encode(self, images: np.ndarray, grid: int | None = None) -> np.ndarray:
        """uint8 images [b, h, w, 3] -> codes int32 [b, grid, grid]; the codec's grid by default."""
        self.need("codec")
        images, config = np.asarray(images), self.codec.config
        size = (config.grid if grid is None else grid) * config.downsampling
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
            raise InputError(
                f"encode got {images.dtype} {images.shape}, expected uint8 [b, {size}, {size}, 3]"
            )
        part = self.codec_part
        return to_host(self._encode(part.params, part.codebook, images))

    def decode(self, codes: np.ndarray, grid: int | None = None) -> np.ndarray:
        """Codes int32 [b, grid, grid] -> uint8 images [b, h, w, 3]; the codec's grid by default."""
        self.need("codec")
        codes, config = np.asarray(codes), self.codec.config
        grid = config.grid if grid is None else grid
        if codes.shape[1:] != (grid, grid) or codes.dtype.kind not in "iu":
            raise InputError(
                f"decode got {codes.dtype} {codes.shape}, expected integers [b, {grid}, {grid}]"
            )
        if codes.size and not 0 <= codes.min() <= codes.max() < config.codebook:
            raise InputError(
                f"decode got codes from {codes.min()} to {codes.max()}, expected 0 to"
                f" {config.codebook - 1}"
            )
        return self._pictures(codes)

    def _pictures(self, codes: np.ndarray) -> np.ndarray:
        """Codes of the codebook, int [b, rows, columns] -> uint8 images [b, h, w, 3]."""
        part = self.codec_part
        return to_host(self._decode(part.params, part.codebook, codes.astype(np.int32)))

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """int32 tokens [b, t] at positions 0..t-1 -> float32 [b, t, vocabulary]."""
        self.need("transformer")
        tokens = np.asarray(tokens)
        longest = self.model.positions
        fits = tokens.ndim == 2 and 0 < tokens.shape[1] <= longest
        if not fits or tokens.dtype.kind not in "iu":
            raise InputError(
                f"logits got {tokens.dtype} {tokens.shape}, expected integers [b, t] with t from 1"
                f" to {longest}"
            )
        vocabulary = self.layout.vocabulary.size
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocabulary:
            raise InputError(
                f"logits got tokens from {tokens.min()} to {tokens.max()}, expected 0 to"
                f" {vocabulary - 1}"
            )
        return np.asarray(self._logits(self.transformer_part.params, tokens.astype(np.int32)))

    def fill(
        self,
        query: str,
        samples: int = 1,
        seed: int = 0,
        *,
        image_size: int | None = None,
        sampling: SamplingConfig | None = None,
    ) -> np.ndarray:
        """Fills the places that a query leaves open: int32 [samples, length].

        A query is a line of the release's language (`tokenizers.query`), such as
        "[ROI1] a red circle [BASE] [BOI1] [MASK]*1024": whatever weights were trained on can be
        asked for. [Image]PATH stands for the codes of a picture, read as the release reads one, at
        `image_size` pixels (the codec's where none is given; half of it for the low picture of a
        super-resolution). `query.decode_sequence` tells the texts and pictures of a row.

        Raises:
            InputError: the query is not in the language, is longer than the positions, or names a
                picture that cannot be read.
        """
        self.need("transformer", "text")
        if samples < 1:
            raise InputError(f"samples {samples}: expected at least 1")
        vocabulary = self.transformer_part.vocabulary
        tokens = parse_query(
            query, vocabulary, self.text, lambda path: self._codes_of(path, image_size)
        )
        return fill(
            self.model,
            self._layers,
            np.where(tokens == OPEN, -samples, tokens),
            vocabulary,
            sampling or SamplingConfig(),
            seeded_choice(seed),
        )

    def super_resolve(
        self,
        images: np.ndarray,
        texts: Sequence[str] | None = None,
        seed: int = 0,
        *,
        sampling: SamplingConfig | None = None,
        batch_size: int | None = None,
        progress: Callable[[int], None] | None = None,
        window_candidates: int | None = None,
        back_projection: int | None = None,
    ) -> list[Image.Image]:
        """Pictures of twice as many rows and columns, for a bundle of super-resolution.

        Pictures of the layout's smaller size take one window, those of its larger size nine
        (`magnification`). A picture depends on the weights, itself, its text and the seed, not on
        the others. Released weights get the sequences and positions they expect, and always nine
        windows.

        Args:
            images: uint8 [b, h, w, 3], squares of either size.
            texts: what each shows; not needed by a model that has learned without text.
            seed: of the draws.
            sampling: temperature and filters; by default `super_resolution_sampling`.
            batch_size: pictures at a time, every candidate counted.
            progress: is told how many windows were done since the last time, each picture's its
                own.
            window_candidates: how often each window is drawn; the one that, reduced, is nearest to
                the given picture stays. By default 1 for released weights and where only the
                likeliest codes are taken, else CANDIDATES.
            back_projection: rounds in which what is drawn is brought back to what was given
                (`back_projected`); by default none for released weights, else ROUNDS.

        Raises:
            InputError: the bundle is of another task, the images have another size, a text is
                blank or too long, or a number is negative.
        """
        larger = self.enlarge(
            images,
            texts,
            seed,
            sampling=sampling,
            batch_size=batch_size,
            progress=progress,
            window_candidates=window_candidates,
            back_projection=back_projection,
        )
        return [Image.fromarray(picture) for pictures in larger for picture in pictures]

    def enlarge(
        self,
        images: np.ndarray,
        texts: Sequence[str] | None,
        seed: int,
        *,
        back_projection: int | None = None,
        **drawing: Any,
    ) -> Iterator[list[np.ndarray]]:
        """The pictures of `super_resolve`, in batches: uint8 [2h, 2w, 3] each.

        Args:
            images, texts, seed, back_projection: as there.
            drawing: the keywords of `draw_larger`.

        Raises:
            InputError: as `super_resolve` does; at once, not at the first batch.
        """
        images = np.asarray(images)
        drawn = self.draw_larger(images, texts, seed, **drawing)
        rounds = back_projection
        if rounds is None:
            rounds = 0 if self.model.config.official else ROUNDS
        if rounds < 0:
            raise InputError(f"back_projection {rounds}: expected 0 or more rounds")

        def batches() -> Iterator[list[np.ndarray]]:
            done = 0
            for codes in drawn:
                given = images[done : done + len(codes)]
                yield back_projected(self.decode(codes, codes.shape[1]), given, rounds)
                done += len(codes)

        return batches()

    def draw_larger(
        self,
        images: np.ndarray,
        texts: Sequence[str] | None,
        seed: int,
        *,
        sampling: SamplingConfig | None = None,
        batch_size: int | None = None,
        progress: Callable[[int], None] | None = None,
        window_candidates: int | None = None,
    ) -> Iterator[np.ndarray]:
        """The codes of the pictures of `super_resolve`, in batches: int32 [b, 2g, 2g] each.

        Args:
            images, texts, seed, sampling, batch_size, progress, window_candidates: as there.

        Raises:
            InputError: as `super_resolve` does; at once, not at the first batch.
        """
        self.need("transformer", "text", "codec")
        images = np.asarray(images)
        if texts is None:
            texts = [] if self.layout.region("text").length else [""] * len(images)
        if isinstance(texts, str) or len(texts) != len(images) or not len(images):
            raise InputError(f"super_resolve got {len(images)} images and {len(texts)} texts")
        config = sampling or self.super_resolution_sampling
        config.need_no_guidance("super-resolution")
        candidates = window_candidates
        if candidates is None:
            alike = self.model.config.official or config.temperature == 0
            candidates = 1 if alike else CANDIDATES
        if candidates < 1:
            raise InputError(f"window_candidates {candidates}: expected 1 or more")
        # What takes memory is a row, and every candidate is one.
        batch_size = max(1, self.batch_size(batch_size, self.layout.length) // candidates)
        plan, vocabulary = self.magnification(images.shape[1]), self.layout.vocabulary
        pieces = [self.pieces(text) for text in texts]
        size, longest = size_command(plan.grid), self.layout.prompt_length("image")
        if self.model.config.official:
            # Up to the first picture the rows of pretraining and of super-resolution are the same.
            longest = self.layout.prompt_length(self.layout.images[0].name) + plan.window**2 + 5

        def head(text: Sequence[int], source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            if not self.model.config.official:
                row = self.layout.tokens({"text": text, "source": source})
                return row, self.layout.positions_of(row)
            row = released_head(self.layout.tokens({"text": text}), source, size, vocabulary)
            # A place to draw behind the head makes the whole head one call.
            return row, sampling_positions([*row, -1], vocabulary)[0]

        def batches() -> Iterator[np.ndarray]:
            for index, own in _batches(len(images), batch_size):
                codes = self.encode(images[index], plan.grid)
                names = [
                    f"{texts[i]} {row.tobytes().hex()}"
                    for i, row in zip(index, codes, strict=True)
                    for _ in range(candidates)
                ]
                keys = sample_keys(seed, names, [*range(candidates)] * len(codes))
                larger = magnify(
                    self._layers,
                    lambda i, source, index=index: head(pieces[index[i]], source),
                    longest,
                    codes,
                    keys.reshape(len(codes), candidates),
                    plan=plan,
                    model=self.model,
                    last=vocabulary.codes,
                    config=config,
                    choose=self._nearest(images[index], plan),
                    progress=None if progress is None else lambda done, own=own: progress(own),
                )
                yield larger[:own]

        return batches()

    def _nearest(self, images: np.ndarray, plan: MagnifyPlan) -> Choice:
        """Chooses the candidate that, reduced, is nearest to its part of its picture."""

        def choose(window: Window, drawn: np.ndarray) -> np.ndarray:
            pictures = self._pictures(drawn.reshape(-1, *drawn.shape[2:]))
            pictures = pictures.reshape(*drawn.shape[:2], *pictures.shape[1:])
            given = images[:, None, *window.pixels(images.shape[1] // plan.grid)]
            return misfits(pictures, given).argmin(axis=1)

        return choose

    @property
    def super_resolution_sampling(self) -> SamplingConfig:
        """How `super_resolve` draws if it is not told: released weights as the release does.

        Of others the likelier draws are the better ones to choose among (bench/RESULTS.md).
        """
        self.need("transformer")
        return SamplingConfig(temperature=1.02 if self.model.config.official else 0.7)

    def magnification(self, size: int) -> MagnifyPlan:
        """The windows in which `super_resolve` enlarges pictures of `size` pixels.

        Raises:
            InputError: the bundle is of another task, or enlarges no pictures of this size.
        """
        sizes = self.magnifiable()
        if size not in sizes:
            raise InputError(
                f"pictures of {size} pixels: the bundle enlarges those of"
                f" {' or '.join(map(str, sizes))}"
            )
        return MagnifyPlan.of(size // self.codec.config.downsampling, self._window())

    def magnifiable(self) -> tuple[int, ...]:
        """The sizes in pixels of the pictures that `super_resolve` enlarges, the usual one first.

        That is the size of the pictures that the codec has learned, if it is one of them.

        Raises:
            InputError: the bundle is of another task.
        """
        self.need("transformer", "codec")
        if not self.model.config.official:
            self.need_task("super_resolution")
        window = self._window()
        # The released weights have seen windows alone.
        whole = () if self.model.config.official else (window,)
        nine = (2 * window,) if in_nine(window) else ()
        sizes = [grid * self.codec.config.downsampling for grid in (*whole, *nine)]
        return tuple(sorted(sizes, key=lambda size: size != self.codec.config.image_size))

    def _window(self) -> int:
        """Rows and columns of the codes that one sequence of super-resolution enlarges."""
        return self.transformer_part.layout.grid // 2

    def _codes_of(self, path: str, size: int | None) -> np.ndarray:
        """The codes of a picture file at `size` pixels, in raster order."""
        self.need("codec")
        config, part = self.codec.config, self.codec_part
        size = config.image_size if size is None else size
        if size < 1 or size % config.downsampling:
            raise InputError(
                f"image_size {size}: expected a multiple of the codec's {config.downsampling}"
            )
        try:
            pixels = official_pixels(Path(path).read_bytes(), path)
        except (OSError, BadRecord) as error:
            raise InputError(f"[Image]{path} cannot be read: {error}") from error
        square = official_square(pixels, size)[None]
        return np.asarray(self._encode(part.params, part.codebook, square)).ravel()

    def score(
        self,
        images: np.ndarray,
        texts: Sequence[str],
        *,
        batch_size: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """CapLoss of each pair, float32 [b]: how unlikely a text is for its picture.

        The mean cross-entropy of the text's tokens (CogView, section 3.2), for a bundle whose
        layout is caption. A pair's score does not depend on the others.

        Args:
            images: uint8 [b, h, w, 3].
            texts: one for each.
            batch_size: pairs at a time.
            progress: is told how many pairs were done since the last time.

        Raises:
            InputError: the bundle is of another task, or a text is blank or too long.
        """
        self.need("transformer", "text", "codec")
        self.need_task("caption")
        if isinstance(texts, str) or len(texts) != len(images):
            raise InputError(f"score got {len(images)} images and {len(texts)} texts")
        batch_size = self.batch_size(batch_size, self.layout.length)
        pieces = [self.pieces(text) for text in texts]
        vocabulary = self.layout.vocabulary
        scores = np.zeros(len(texts), np.float32)
        # Texts of one length at a time: none is padded.
        for count in sorted({len(each) for each in pieces}):
            alike = np.array([i for i, each in enumerate(pieces) if len(each) == count])
            for index, own in _batches(len(alike), batch_size):
                chosen = alike[index]
                codes = self.encode(np.asarray(images)[chosen]).reshape(len(chosen), -1)
                # Without the end of the text, which is none of its tokens.
                rows = [
                    self.layout.tokens({"image": row, "text": pieces[i]})[:-1]
                    for row, i in zip(codes, chosen, strict=True)
                ]
                tokens = np.stack(rows)
                log_probs = token_log_probs(
                    self.transformer_part.params,
                    tokens,
                    np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape),
                    model=self.model,
                    count=count,
                    first=vocabulary.text_start,
                    last=vocabulary.size,
                )
                scores[chosen[:own]] = -np.mean(to_host(log_probs)[:own], axis=1)
                if progress is not None:
                    progress(own)
        return scores

    def prompt_tokens(self, prompt: str) -> np.ndarray:
        """The sequence before the first code: int32 [at most the layout's prompt length].

        Raises:
            InputError: the prompt is blank or longer than the text region.
        """
        self.need("transformer", "text")
        self.need_task("text_to_image")
        return self.layout.tokens({"text": self.pieces(prompt)})

    def pieces(self, text: str) -> list[int]:
        """The pieces of a text, counted from 0; none for a model that has learned without text.

        Raises:
            InputError: the text is blank or longer than the text region.
        """
        region = self.layout.region("text")
        if not region.length:
            return []
        pieces = self.text.encode(text)
        if not pieces:
            raise InputError(f"prompt {text!r} holds no text")
        if len(pieces) > region.length:
            raise InputError(
                f"prompt {text[:60]!r} has {len(pieces)} tokens, but the text region holds"
                f" {region.length}: shorten it"
            )
        return pieces

    def need_task(self, task: str) -> None:
        """InputError where the transformer was trained for another task than `task`."""
        if self.layout.task != task:
            raise InputError(
                f"the bundle's transformer was trained for {self.layout.task}, this needs {task}"
            )

    def _full_logits(self, params: Any, tokens: jax.Array) -> jax.Array:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        hidden = self.model.apply({"params": params}, tokens, positions)
        return self.model.apply({"params": params}, hidden, method=self.model.logits)

    def need(self, *parts: str) -> None:
        """InputError that names what is missing of the parts codec, text and transformer."""
        have = {
            "codec": self.codec_part,
            "text": self.text,
            "transformer": self.transformer_part,
        }
        missing = [part for part in parts if have[part] is None]
        if missing:
            raise InputError(f"the bundle has no {' and no '.join(missing)}, which this needs")


def _told(
    batches: Iterator[np.ndarray], progress: Callable[[int], None] | None
) -> Iterator[np.ndarray]:
    """The batches as they come; `progress` is told the length of each."""
    for batch in batches:
        if progress is not None:
            progress(len(batch))
        yield batch


def _batches(count: int, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """The indices of `count` rows in batches of one size, and how many of a batch are new.

    The last batch is filled up with earlier rows, so that it needs no compilation of its own. A
    small job takes a small batch; powers of two keep the compilations few.
    """
    batch_size = max(min(batch_size, 1 << (count - 1).bit_length()), least_rows())
    for start in range(0, count, batch_size):
        index = np.arange(start, start + batch_size) % count
        yield index, min(batch_size, count - start)


@waiting("loading the bundle")
def load(path: str | Path, *, dtype: Any = jnp.float32, mesh: Any = None) -> CogView:
    """Reads a bundle: every part it has.

    Args:
        path: the bundle's folder.
        dtype: of the transformer's and codec's arithmetic, and of the transformer's weights: a
            type, or the name of a policy (`runtime.precision`), such as "float16_pure".
        mesh: splits the parameters over these devices (`runtime.mesh.make_mesh`); use the model
            under `jax.set_mesh(mesh)`.

    Raises:
        InputError: there is no bundle, or its parts do not belong together or are damaged.
    """
    bundle, compute = Bundle(path), policy_of(dtype).compute
    return CogView(
        codec=bundle.codec(mesh) if "codec" in bundle.parts else None,
        text=bundle.text() if "text" in bundle.parts else None,
        transformer=bundle.transformer(mesh, compute) if "transformer" in bundle.parts else None,
        dtype=dtype,
    )
