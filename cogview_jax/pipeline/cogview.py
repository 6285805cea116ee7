"""`CogView`: a bundle in memory, and what Python users do with it."""

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from cogview_jax.checkpoints.bundle import Bundle, CodecPart, TransformerPart
from cogview_jax.data.records import BadRecord
from cogview_jax.interop.official.fill import SAMPLES, fill, seeded_choice
from cogview_jax.interop.official.images import official_pixels, official_square
from cogview_jax.interop.official.positions import sampling_positions
from cogview_jax.interop.official.query import parse_query
from cogview_jax.models.transformer import (
    layered,
    logits_of,
    stacked,
    stacked_arrays,
    whole_forward,
    without_blocks,
)
from cogview_jax.runtime.bounds import (
    MOST_CANDIDATES,
    MOST_PICTURES,
    MOST_ROUNDS,
    MOST_ROWS,
    need_count,
)
from cogview_jax.runtime.compilation_cache import enable_compilation_cache
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import retried
from cogview_jax.runtime.files import read_regular
from cogview_jax.runtime.hardware import free_memory
from cogview_jax.runtime.heap import trim_heap
from cogview_jax.runtime.inside import inside
from cogview_jax.runtime.mesh import to_host
from cogview_jax.runtime.precision import policy_of
from cogview_jax.runtime.processes import say
from cogview_jax.runtime.progress import waiting
from cogview_jax.sampling.back_projection import ROUNDS, back_projected, misfits
from cogview_jax.sampling.decode import OPEN, generate, in_parts, least_rows, sample_keys, seed_key
from cogview_jax.sampling.filters import SamplingConfig
from cogview_jax.sampling.magnify import MagnifyPlan, Window, in_nine, released_head
from cogview_jax.sampling.scoring import token_log_probs
from cogview_jax.sampling.super_resolution import CANDIDATES, Choice, magnify
from cogview_jax.tokenizers.codec import Codec, decode_codes, encode_images
from cogview_jax.tokenizers.layout import left_padded, make_layout, size_command
from cogview_jax.tokenizers.prompt import need_text, shown
from cogview_jax.tokenizers.text import TextTokenizer

#: Rows of a sampled batch where none is given and memory has room: more gain little.
BATCH = 64
#: Of the free memory, what the caches of a batch may take; the rest is for what XLA works with.
CACHE_SHARE = 0.4
#: Tokens of a caption between two looks at whether all have ended.
CHUNK = 8
#: Rows of logits computed at a time: one takes a quarter of a gigabyte of a model of usual size.
LOGITS = 8
#: What is not drawn yet.
GREY = 128
#: The longest query in learned positions, which may begin again within it.
QUERY_STRETCHES = 8
#: Of a picture that a query names, the most bytes that are read.
QUERY_PICTURE_BYTES = 256 << 20


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
        encode_dtype: Any = jnp.float32,
    ):
        """Puts the parts together; `dtype` is that of the arithmetic, or the name of a policy.

        Pictures are encoded in `encode_dtype`, whatever the rest is computed in: another type finds
        other codes.
        """
        policy = self.policy = policy_of(dtype)
        self.text, self.codec_part, self._transformer, self._layers = text, codec, None, None
        self._said_of_guidance = False
        #: What becomes of prompts that are longer than the text region: "cut" or "refuse".
        self.long_prompts: Literal["cut", "refuse"] = "cut"
        self._cut: set[str] = set()
        if codec is not None:
            self.codec = Codec(codec.config, policy.compute)
            encoder = self.codec.clone(dtype=policy_of(encode_dtype).compute)
            self._encode = jax.jit(lambda p, c, images: encode_images(encoder, p, c, images))
            self._decode = jax.jit(lambda p, c, codes: decode_codes(self.codec, p, c, codes))
        if transformer is not None:
            self.layout = make_layout(transformer.layout, transformer.vocabulary)
            self.model = transformer.model.clone(policy=policy)
            self._layers = transformer.params
            if not isinstance(self._layers["blocks"], tuple):
                self._layers = layered(stacked_arrays(transformer.params))
            # The only form of the weights that is kept.
            self._transformer = replace(transformer, params=self._layers)

    @property
    def transformer_part(self) -> TransformerPart | None:
        """The transformer as a bundle takes it; its parameters are stacked anew every time."""
        if self._transformer is None:
            return None
        return replace(self._transformer, params=stacked(self._layers))

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

        Args:
            prompts: or a single one, which counts as a list of one.
            num_images: for each prompt.
            seed: of the draws.
            sampling: temperature, filters and guidance.
            batch_size: pictures at a time; by default what memory has room for.
            progress: see above.

        Raises:
            InputError: no prompt or no image, more pictures than MOST_PICTURES, or a prompt that
                `pieces` refuses.
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
        pictures = iter(self.decode(codes.reshape(-1, *codes.shape[2:])))
        return [[Image.fromarray(next(pictures)) for _ in row] for row in codes]

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
        prompts = [prompts] if isinstance(prompts, str) else prompts
        if not len(prompts):
            raise InputError("generate needs a list of at least one prompt")
        need_count("num_images", num_images, MOST_PICTURES // len(prompts))
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
        rows = self._prompt_rows(prompts)
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
        need_count("num_images", num_images, MOST_PICTURES)
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
        rows = self._prompt_rows(texts)
        grid, images = self._transformer.layout.grid, np.asarray(images)
        if not 0 <= keep_rows < grid:
            raise InputError(f"keep_rows {keep_rows}: expected 0 to {grid - 1}")
        kept = self.encode(images)[:, :keep_rows].reshape(len(images), -1)
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
        self._say_of_guidance(config)
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
        batch_size = self.batch_size(batch_size, each * self.layout.length, len(rows))
        seed_key(seed)  # says now, and not with the first batch, that there is no such seed
        self._say_of_guidance(sampling)

        def batches() -> Iterator[np.ndarray]:
            for index, own in _batches(len(rows), batch_size):
                keys = sample_keys(seed, [prompts[i] for i in index], [indices[i] for i in index])
                tokens, own_keys = self._with_bare([rows[i] for i in index], keys, kept, sampling)
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
                trim_heap()  # what programs were compiled in, and their caches
                yield codes.reshape(own, image.grid, image.grid)

        return batches()

    def batch_size(self, given: int | None, tokens: int, count: int | None = None) -> int:
        """Rows of a batch: those given, or as many as free memory has room for, at most BATCH.

        Args:
            given: by the user.
            tokens: slots of the key/value cache that a row takes.
            count: how many rows there are, where memory is to be looked at whatever is given.

        Raises:
            InputError: less than one row, more than MOST_ROWS, or a batch whose cache alone takes
                more than all free memory.
        """
        config, free = self.model.config, free_memory(jax.local_devices()[0])
        width = np.dtype(self.model.policy.compute).itemsize
        row = 2 * config.layers * config.width * tokens * width
        if given is not None:
            need_count("batch_size", given, MOST_ROWS)
            takes = min(given, count or 1) * row
            room = None if free is None else free * jax.device_count()
            if room is not None and takes > max(room, row):
                raise InputError(
                    f"batch_size {given}: its cache takes {takes / 2**30:.0f} GiB, but"
                    f" {room / 2**30:.0f} GiB are free"
                )
            return given
        if free is None:
            return BATCH
        return _power(CACHE_SHARE * free / row)

    def _with_bare(
        self, rows: Sequence[np.ndarray], keys: jax.Array, kept: int, config: SamplingConfig
    ) -> tuple[Sequence[np.ndarray], jax.Array]:
        """Rows that end with `kept` codes, and their keys; for guidance also those without text."""
        if config.guidance == 1:
            return rows, keys
        bare = self.layout.tokens({"text": []})
        without = [np.concatenate([bare, row[len(row) - kept :]]) for row in rows]
        return [*rows, *without], jnp.concatenate([keys, keys])

    def _say_of_guidance(self, config: SamplingConfig) -> None:
        """One line, once, where guidance compares with what the model may not have learned."""
        dropped = self._transformer.drop_captions
        if config.guidance == 1 or dropped or self._said_of_guidance:
            return
        self._said_of_guidance = True
        learned = (
            "nobody has recorded whether this model has learned without captions too"
            if dropped is None
            else "this model has learned with captions alone (drop_captions 0)"
        )
        say(
            f"guidance {config.guidance}: {learned}; pictures may be smeared: leave it at 1, or"
            " train with --config.drop_captions=0.1"
        )

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
        batch_size = self.batch_size(batch_size, self.layout.length, len(images))
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
        return _in_few_sizes(
            lambda some: self._encode(part.params, part.codebook, some), images, self._at_a_time()
        )

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
        return _in_few_sizes(self._pixels, codes, self._at_a_time())

    def _at_a_time(self) -> int:
        """Pictures that the codec handles at a time: what free memory has room for, at most BATCH.

        A picture takes about three times what its largest layer has: as many values as pixels and
        channels.
        """
        config, free = self.codec.config, free_memory(jax.local_devices()[0])
        picture = 3 * 4 * config.image_size**2 * config.level_channels[0]
        return BATCH if free is None else _power(CACHE_SHARE * free / picture)

    def _pixels(self, codes: np.ndarray) -> jax.Array:
        """Codes of the codebook, int [b, rows, columns] -> uint8 images [b, h, w, 3]."""
        part = self.codec_part
        return self._decode(part.params, part.codebook, codes.astype(np.int32))

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
        if self.model.config.official:
            return np.asarray(self._logits(tokens))  # a row has a say in what others become
        return _in_few_sizes(self._logits, tokens, LOGITS)

    def _logits(self, tokens: np.ndarray) -> jax.Array:
        tokens = tokens.astype(np.int32)
        positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
        hidden = whole_forward(self.model, self._layers, tokens, positions)
        return logits_of(without_blocks(self._layers), hidden, model=self.model)

    def fill(
        self,
        query: str,
        samples: int = 1,
        seed: int = 0,
        *,
        images: str | Path | Callable[[str], Any] | None = None,
        image_size: int | None = None,
        sampling: SamplingConfig | None = None,
    ) -> np.ndarray:
        """Fills the places that a query leaves open: int32 [samples, length].

        A query is a line of the release's language (`tokenizers.query`), such as
        "[ROI1] a red circle [BASE] [BOI1] [MASK]*1024": whatever weights were trained on can be
        asked for. [Image]PATH stands for the codes of a picture, read as the release reads one.
        `query.decode_sequence` tells the texts and pictures of a row.

        Args:
            query: see above.
            samples: how often the open places are filled.
            seed: of the draws.
            images: the folder that a query's paths are in, outside of which no file is opened; or
                a function that gives the picture of a name, uint8 [h, w, 3 or 4] or a PIL image.
                Without it a query holds no pictures.
            image_size: of each picture in pixels; the codec's where none is given, half of it for
                the low picture of a super-resolution.
            sampling: temperature and filters.

        Raises:
            InputError: the query is not in the language, is longer than the positions, names a
                picture that cannot be read, or asks for too many samples.
        """
        self.need("transformer", "text")
        need_count("samples", samples, SAMPLES)
        vocabulary = self._transformer.vocabulary
        tokens = parse_query(
            query,
            vocabulary,
            self.text,
            lambda name: self._codes_of(name, images, image_size),
            QUERY_STRETCHES * self.model.positions,
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
        need_count("back_projection", rounds, MOST_ROUNDS, 0)

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
        need_count("window_candidates", candidates, MOST_CANDIDATES)
        # What takes memory is a row, and every candidate is one.
        rows = candidates * len(images)
        batch_size = max(1, self.batch_size(batch_size, self.layout.length, rows) // candidates)
        plan, vocabulary = self.magnification(images.shape[1]), self.layout.vocabulary
        pieces = self._pieces_of(texts)
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
                    lambda i, source, index=index: head(pieces[texts[index[i]]], source),
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
            pictures = to_host(self._pixels(drawn.reshape(-1, *drawn.shape[2:])))
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
        return self._transformer.layout.grid // 2

    def _codes_of(
        self, name: str, images: str | Path | Callable[[str], Any] | None, size: int | None
    ) -> np.ndarray:
        """The codes of a query's picture at `size` pixels, in raster order; see `fill`."""
        self.need("codec")
        config, part = self.codec.config, self.codec_part
        size = config.image_size if size is None else size
        if size < 1 or size % config.downsampling:
            raise InputError(
                f"image_size {size}: expected a multiple of the codec's {config.downsampling}"
            )
        square = official_square(_query_picture(name, images), size)[None]
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
        batch_size = self.batch_size(batch_size, self.layout.length, len(texts))
        found = self._pieces_of(texts)
        pieces = [found[text] for text in texts]
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
                    self._layers,
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
            InputError: as `pieces` does.
        """
        return self._prompt_rows([prompt])[prompt]

    def _prompt_rows(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """`prompt_tokens` of every prompt."""
        self.need("transformer", "text")
        self.need_task("text_to_image")
        found = self._pieces_of(prompts)
        return {prompt: self.layout.tokens({"text": found[prompt]}) for prompt in found}

    def pieces(self, text: str) -> list[int]:
        """The pieces of a text, counted from 0; none for a model that has learned without text.

        Of a text with more than the text region holds, its first ones, as in training; standard
        error says so. With `long_prompts` "refuse" there are none.

        Raises:
            InputError: the text is blank, has more than MOST_CHARACTERS, is no Unicode, or is
                longer than the region and to be refused.
        """
        return self._pieces_of([text])[text]

    def refused(self, texts: Sequence[str]) -> dict[str, str]:
        """Those of the texts that `pieces` refuses, each with the reason."""
        found = {}
        for text in dict.fromkeys(texts):
            try:
                self._encoded(text)
            except InputError as error:
                found[text] = str(error)
        return found

    def _encoded(self, text: str) -> tuple[list[int], str | None]:
        """`pieces` of a text, and what to say where some are cut off."""
        length = self.layout.region("text").length
        need_text(text, blank=not length)
        pieces = self.text.encode(text) if length else []
        if length and not pieces:
            raise InputError(f"prompt {shown(text)} holds no text")
        if len(pieces) <= length:
            return pieces, None
        says = f"prompt {shown(text)} has {len(pieces)} tokens, but the text region holds {length}"
        if self.long_prompts == "refuse":
            raise InputError(f"{says}: shorten it")
        return pieces[:length], says

    def _pieces_of(self, texts: Sequence[str]) -> dict[str, list[int]]:
        """`pieces` of every text, and one notice of all that are cut for the first time."""
        found = {text: self._encoded(text) for text in dict.fromkeys(texts)}
        new = [says for text, (_, says) in found.items() if says and text not in self._cut]
        self._cut |= {text for text, (_, says) in found.items() if says}
        if new:
            more = f"; {len(new) - 1} more prompts too" if new[1:] else ""
            print(f"{new[0]}: it is cut there, as captions are in training{more}", file=sys.stderr)
        return {text: pieces for text, (pieces, _) in found.items()}

    def need_task(self, task: str) -> None:
        """InputError where the transformer was trained for another task than `task`."""
        if self.layout.task != task:
            raise InputError(
                f"the bundle's transformer was trained for {self.layout.task}, this needs {task}"
            )

    @property
    def parts(self) -> set[str]:
        """Which there are of codec, text and transformer."""
        have = {
            "codec": self.codec_part,
            "text": self.text,
            "transformer": self._transformer,
        }
        return {name for name, part in have.items() if part is not None}

    def __repr__(self) -> str:
        """The parts, their sizes, the task, the type of the arithmetic, and the devices."""
        lines = []
        if self._transformer is not None:
            model, layout = self._transformer.config, self._transformer.layout
            lines.append(
                f"transformer: {layout.task}, {model.layers} layers of width {model.width},"
                f" {model.heads} heads, {_count(self._layers):,} parameters; {layout.text_length}"
                f" text tokens, {layout.grid} x {layout.grid} codes"
            )
        if self.codec_part is not None:
            codec = self.codec_part.config
            lines.append(
                f"codec: {codec.image_size} x {codec.image_size} pixels, {codec.grid} x"
                f" {codec.grid} codes of {codec.codebook:,},"
                f" {_count(self.codec_part.params):,} parameters"
            )
        if self.text is not None:
            lines.append(f"text: {len(self.text):,} pieces")
        arrays = jax.tree.leaves((self._layers, self.codec_part and self.codec_part.params))
        devices = {device for array in arrays for device in _devices(array)}
        kinds = sorted({device.device_kind for device in devices})
        where = f" on {len(devices)} x {', '.join(kinds)}" if devices else ""
        lines.append(f"arithmetic: {self.policy.name}{where}")
        return "\n  ".join(["CogView", *lines])

    def need(self, *parts: str) -> None:
        """InputError that names what is missing of the parts codec, text and transformer."""
        missing = [part for part in parts if part not in self.parts]
        if missing:
            raise InputError(f"the bundle has no {' and no '.join(missing)}, which this needs")


def _query_picture(name: str, images: str | Path | Callable[[str], Any] | None) -> np.ndarray:
    """The pixels of a query's picture; see `CogView.fill`."""
    shown = f"[Image]{name[:200]}"
    if images is None:
        raise InputError(f"{shown}: expected images=FOLDER, the folder that pictures are read from")
    if callable(images):
        return np.asarray(images(name))
    try:
        path = inside(images, name)
        data = retried(lambda: read_regular(path, QUERY_PICTURE_BYTES), str(path))
        return official_pixels(data, name)
    except (OSError, BadRecord, InputError) as error:
        raise InputError(f"{shown} cannot be read: {error}") from error


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


def _power(fit: float) -> int:
    """The largest power of two that is no more than `fit`, but 1 to BATCH."""
    return min(BATCH, 1 << (max(1, int(fit)).bit_length() - 1))


def _in_few_sizes(
    work: Callable[[np.ndarray], jax.Array], rows: np.ndarray, most: int
) -> np.ndarray:
    """`work(rows)` in batches of few sizes, each of which is compiled once.

    Args:
        work: of rows [b, ...] that are independent of each other, to [b, ...].
        rows: any number of them.
        most: rows of a batch.
    """
    if not len(rows):
        return to_host(work(rows))
    done = [to_host(work(rows[index]))[:own] for index, own in _batches(len(rows), most)]
    return done[0] if len(done) == 1 else np.concatenate(done)


def _count(params: Any) -> int:
    return sum(array.size for array in jax.tree.leaves(params))


def _devices(array: Any) -> set[jax.Device]:
    return array.devices() if isinstance(array, jax.Array) else {jax.local_devices()[0]}


@waiting("loading the bundle")
def load(path: str | Path, *, dtype: Any = jnp.float32, mesh: Any = None) -> CogView:
    """Reads a bundle: every part it has.

    Args:
        path: the bundle's folder.
        dtype: of the transformer's and decoder's arithmetic, and of the transformer's weights: a
            type, or the name of a policy (`runtime.precision`), such as "float16_pure". Pictures
            are always encoded in float32, so their codes do not depend on it.
        mesh: splits the parameters over these devices (`runtime.mesh.make_mesh`); use the model
            under `jax.set_mesh(mesh)`.

    Raises:
        InputError: there is no bundle, or its parts do not belong together or are damaged.
    """
    enable_compilation_cache()
    bundle, compute = Bundle(path), policy_of(dtype).compute
    bundle.check_fit()
    jax.devices()  # where there are none of the platform asked for, that is no fault of the bundle
    return CogView(
        codec=bundle.codec(mesh) if "codec" in bundle.parts else None,
        text=bundle.text() if "text" in bundle.parts else None,
        transformer=(
            bundle.layered_transformer(mesh, compute) if "transformer" in bundle.parts else None
        ),
        dtype=dtype,
    )
