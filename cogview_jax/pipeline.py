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
from cogview_jax.runtime.mesh import to_host
from cogview_jax.runtime.precision import policy_of
from cogview_jax.sampling.decode import decode, generate, least_rows, prefill, sample_keys
from cogview_jax.sampling.fill import fill, seeded_choice
from cogview_jax.sampling.filters import SamplingConfig
from cogview_jax.sampling.scoring import token_log_probs
from cogview_jax.sampling.super_resolution import magnify
from cogview_jax.tokenizers.codec import Codec, decode_codes, encode_images
from cogview_jax.tokenizers.layout import left_padded, make_layout
from cogview_jax.tokenizers.query import OPEN, parse_query
from cogview_jax.tokenizers.text import TextTokenizer

#: Rows of a sampled batch where none is given.
BATCH = 32
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
        batch_size: int = BATCH,
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
        batch_size: int = BATCH,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """The codes `generate` draws: int32 [prompts, num_images, rows, columns]."""
        self.need("transformer", "text")
        if num_images < 1 or batch_size < 1:
            raise InputError(
                f"num_images {num_images} and batch_size {batch_size}: both start at 1"
            )
        if isinstance(prompts, str) or not prompts:
            raise InputError("generate needs a list of at least one prompt")
        drawn = self._draw(
            [row for row in map(self.prompt_tokens, prompts) for _ in range(num_images)],
            [prompt for prompt in prompts for _ in range(num_images)],
            list(range(num_images)) * len(prompts),
            seed,
            sampling=sampling,
            batch_size=batch_size,
            progress=progress,
        )
        grid = self.transformer_part.layout.grid
        return drawn.reshape(len(prompts), num_images, grid, grid)

    def complete(
        self,
        image: np.ndarray,
        keep_rows: int,
        text: str,
        num_images: int = 1,
        seed: int = 0,
        *,
        sampling: SamplingConfig | None = None,
        batch_size: int = BATCH,
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
        self.need("transformer", "text", "codec")
        prompt, grid = self.prompt_tokens(text), self.transformer_part.layout.grid
        if not 0 <= keep_rows < grid:
            raise InputError(f"keep_rows {keep_rows}: expected 0 to {grid - 1}")
        if num_images < 1 or batch_size < 1:
            raise InputError(
                f"num_images {num_images} and batch_size {batch_size}: both start at 1"
            )
        kept = self.encode(np.asarray(image)[None])[0, :keep_rows].ravel()
        drawn = self._draw(
            [np.concatenate([prompt, kept])] * num_images,
            [text] * num_images,
            list(range(num_images)),
            seed,
            kept=len(kept),
            sampling=sampling or SamplingConfig(),
            batch_size=batch_size,
            progress=progress,
        )
        codes = np.concatenate([np.tile(kept, (num_images, 1)), drawn], axis=1)
        return [Image.fromarray(x) for x in self.decode(codes.reshape(num_images, grid, grid))]

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
        ids = {"model": self.model, "first": first}
        sequences = prefill(self._layers, tokens, valid, keys, count=image.length, **ids)
        codes = np.zeros((0, grid), np.int32)
        while len(codes) < grid:
            sequences, drawn = decode(
                self._layers,
                sequences,
                count=grid,
                last=last,
                config=config,
                **ids,
            )
            codes = np.concatenate([codes, to_host(drawn)[:1]])
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
        batch_size: int,
        progress: Callable[[int], None] | None,
    ) -> np.ndarray:
        """The image tokens that continue each row: int32 [rows, image tokens - kept].

        kept: how many image tokens every row ends with. The others see `sample_keys`.
        """
        first, last = self.layout.allowed("image")
        # Prompts are padded to the longest there can be: one compilation for all of them.
        longest = self.layout.prompt_length("image") + kept
        keys = sample_keys(seed, prompts, indices)
        drawn = []
        for index, own in _batches(len(rows), batch_size):
            tokens, own_keys = self._with_bare(
                [rows[i] for i in index], keys[index], kept, sampling
            )
            codes = generate(
                self._layers,
                *left_padded(tokens, longest),
                own_keys,
                model=self.model,
                count=self.layout.region("image").length - kept,
                first=first,
                last=last,
                config=sampling,
            )
            drawn.append(to_host(codes)[:own])
            if progress is not None:
                progress(own)
        return np.concatenate(drawn)

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
        batch_size: int = BATCH,
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
        if not len(images) or batch_size < 1:
            raise InputError(
                f"caption got {len(images)} images and batch_size {batch_size}: both start at 1"
            )
        # The end of a text, [PAD], is the id behind the last piece.
        first, end = self.layout.allowed("text")
        room = self.layout.region("text").length + 1
        ids = {"model": self.model, "first": first}
        config = sampling or SamplingConfig(temperature=0.0)
        config.need_no_guidance("a caption")
        texts = []
        for index, own in _batches(len(images), batch_size):
            codes = self.encode(np.asarray(images)[index]).reshape(len(index), -1)
            tokens = np.stack([self.layout.tokens({"image": row}) for row in codes])
            keys = sample_keys(seed, [row.tobytes().hex() for row in codes], [0] * len(codes))
            valid = np.ones(tokens.shape, bool)
            sequences = prefill(self._layers, tokens, valid, keys, count=room, **ids)
            drawn = np.zeros((len(index), 0), np.int32)
            while drawn.shape[1] < room and not (drawn[:own] == end).any(axis=1).all():
                count = min(CHUNK, room - drawn.shape[1])
                sequences, new = decode(
                    self._layers, sequences, count=count, last=end + 1, config=config, **ids
                )
                drawn = np.concatenate([drawn, to_host(new)], axis=1)
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

    def encode(self, images: np.ndarray) -> np.ndarray:
        """uint8 images [b, h, w, 3] -> codes int32 [b, rows, columns]."""
        self.need("codec")
        images = np.asarray(images)
        size = self.codec.config.image_size
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
            raise InputError(
                f"encode got {images.dtype} {images.shape}, expected uint8 [b, {size}, {size}, 3]"
            )
        part = self.codec_part
        return to_host(self._encode(part.params, part.codebook, images))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes int32 [b, rows, columns] -> uint8 images [b, h, w, 3]."""
        self.need("codec")
        codes, config = np.asarray(codes), self.codec.config
        expected = (config.grid, config.grid)
        if codes.shape[1:] != expected or codes.dtype.kind not in "iu":
            raise InputError(
                f"decode got {codes.dtype} {codes.shape}, expected integers [b, {expected[0]},"
                f" {expected[1]}]"
            )
        if codes.size and not 0 <= codes.min() <= codes.max() < config.codebook:
            raise InputError(
                f"decode got codes from {codes.min()} to {codes.max()}, expected 0 to"
                f" {config.codebook - 1}"
            )
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
        texts: Sequence[str],
        seed: int = 0,
        *,
        sampling: SamplingConfig | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Image.Image]:
        """Pictures of twice as many rows and columns, in nine windows (`sampling.magnify`).

        For released super-resolution weights, whose sequences and positions it uses.

        Args:
            images: uint8 [b, h, w, 3].
            texts: what each shows.
            seed: of the draws; a picture's depend on its text and its place in `images`.
            sampling: the release has temperature 1.02 here.
            progress: is told how many windows were done since the last time.

        Raises:
            InputError: the weights are no released ones, or a text is blank or too long.
        """
        self.need("transformer", "text", "codec")
        if not self.model.config.official:
            raise InputError("super_resolve needs released weights (compat 'official')")
        if isinstance(texts, str) or len(texts) != len(images):
            raise InputError(f"super_resolve got {len(images)} images and {len(texts)} texts")
        codes = magnify(
            self._layers,
            [self.prompt_tokens(text) for text in texts],
            self.encode(images),
            sample_keys(seed, texts, range(len(texts))),
            model=self.model,
            vocabulary=self.transformer_part.vocabulary,
            config=sampling or SamplingConfig(temperature=1.02),
            progress=progress,
        )
        part = self.codec_part
        pictures = np.asarray(self._decode(part.params, part.codebook, codes))
        return [Image.fromarray(picture) for picture in pictures]

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
        batch_size: int = BATCH,
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
        if batch_size < 1:
            raise InputError(f"batch_size {batch_size}: expected at least 1")
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
        """The pieces of a text, counted from 0.

        Raises:
            InputError: the text is blank or longer than the text region.
        """
        pieces = self.text.encode(text)
        if not pieces:
            raise InputError(f"prompt {text!r} holds no text")
        region = self.layout.region("text")
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


def _batches(count: int, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """The indices of `count` rows in batches of one size, and how many of a batch are new.

    The last batch is filled up with earlier rows, so that it needs no compilation of its own. A
    small job takes a small batch; powers of two keep the compilations few.
    """
    batch_size = max(min(batch_size, 1 << (count - 1).bit_length()), least_rows())
    for start in range(0, count, batch_size):
        index = np.arange(start, start + batch_size) % count
        yield index, min(batch_size, count - start)


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
