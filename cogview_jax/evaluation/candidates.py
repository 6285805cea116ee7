"""Pools of candidates: the images that a bundle samples for each prompt, and their scores.

Both are rows on disk, so that a long evaluation goes on where it was interrupted.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from cogview_jax.data.records import BadRecord
from cogview_jax.data.transforms import SquareView
from cogview_jax.evaluation.benchmark import Options
from cogview_jax.evaluation.image_sets import ImageSet, good_images
from cogview_jax.evaluation.row_store import RowStore
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.sampling.engine import SamplingRequest
from cogview_jax.sampling.options import SamplingConfig

#: Images that are encoded, decoded or scored together. No result depends on it.
_TOGETHER = 64


class CodedImages:
    """A set of images that lie on disk as codes; see `evaluation.image_sets.ImageSet`."""

    def __init__(
        self, model: CogView, codes: RowStore, grid: tuple[int, int], name: str, precision: str
    ):
        """Nothing is decoded.

        Args:
            model: whose image tokenizer decodes.
            codes: a row an image, its codes row by row; -1 where there is no image.
            grid: rows and columns of the codes.
            name: for people.
            precision: in which `model` decodes.
        """
        self.name, self._model, self._codes, self._grid = name, model, codes, grid
        self.identity = codes.job | {"decoded_in": precision}

    def __len__(self) -> int:
        """How many there are, good and bad."""
        return self._codes.count

    def codes(self) -> Iterator[Int[np.ndarray, "n codes"]]:
        """The codes of all images that there are, some at a time."""
        for rows in self._codes.blocks():
            yield rows[rows[:, 0] >= 0]

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray | BadRecord]:
        """The decoded images of these numbers, some at a time."""
        for start in range(0, len(numbers), _TOGETHER):
            some = numbers[start : start + _TOGETHER]
            codes = self._codes.read(some)
            # All batches have one size, so that one function is compiled.
            padded = np.resize(np.maximum(codes, 0), (_TOGETHER, codes.shape[1]))
            images = self._model.decode(padded.reshape(-1, *self._grid))
            for number, row, image in zip(some, codes, images[: len(some)], strict=True):
                yield image if row[0] >= 0 else BadRecord(str(number), "there is no image")


class Selected:
    """Some images of a set, in a given order."""

    def __init__(self, images: ImageSet, numbers: Sequence[int] | np.ndarray, name: str):
        """numbers: which, by their numbers in `images`. name: for people."""
        self.name, self._images, self._numbers = name, images, np.asarray(numbers, np.int64)
        digest = hashlib.sha256(self._numbers.tobytes()).hexdigest()
        self.identity = {"of": images.identity, "numbers": digest}

    def __len__(self) -> int:
        """How many there are, good and bad."""
        return len(self._numbers)

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray | BadRecord]:
        """See `evaluation.image_sets.ImageSet`."""
        yield from self._images.read([int(self._numbers[number]) for number in numbers])


class Squares:
    """A set of whose images the central square is seen, scaled to one size."""

    def __init__(self, images: ImageSet, size: int):
        """size: rows and columns."""
        self.name, self._images = images.name, images
        self._view, self._rng = SquareView(size), np.random.default_rng(0)
        self.identity = {"of": images.identity, "view": f"square of {size}"}

    def __len__(self) -> int:
        """How many there are, good and bad."""
        return len(self._images)

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray | BadRecord]:
        """See `evaluation.image_sets.ImageSet`."""
        for image in self._images.read(numbers):
            yield image if isinstance(image, BadRecord) else self._view(image, self._rng)


def sample_candidates(
    model: CogView,
    prompts: Sequence[str],
    candidates: int,
    folder: Path,
    *,
    bundle: str,
    seed: int,
    sampling: SamplingConfig,
    precision: str,
    batch_size: int | None,
) -> CodedImages:
    """`candidates` images for each prompt; that of prompt i and index j has number i n + j.

    They are those that `CogView.generate` gives. Processes that call it with the same share the
    work.

    Args:
        model: of text_to_image.
        prompts: one or more.
        candidates: n.
        folder: for the codes.
        bundle: the hash of the bundle.
        seed, sampling, batch_size: as everywhere.
        precision: in which `model` computes.

    Raises:
        InputError: a prompt that the model refuses.
    """
    grid = model.codec.config.grid
    job: Mapping[str, Any] = {
        "bundle": bundle,
        "prompts": sha256_of(prompts),
        "candidates": candidates,
        "seed": seed,
        "sampling": asdict(sampling),
        "precision": precision,
    }
    store = RowStore(
        folder,
        job,
        count=len(prompts) * candidates,
        width=grid * grid,
        batch=max(_TOGETHER, batch_size or 0),
        dtype=np.int32,
    )

    def compute(numbers: range) -> Iterator[np.ndarray]:
        requests = [
            SamplingRequest(prompts[number // candidates], seed, number % candidates, sampling)
            for number in numbers
        ]
        for codes in model.generation.sample_codes(requests, batch_size):
            yield codes.reshape(len(codes), -1)

    store.fill(compute, "sample", per_minute=True)
    name = f"{candidates} samples of {len(prompts)} prompts"
    return CodedImages(model, store, (grid, grid), name, precision)


def sample_asked(
    model: CogView, prompts: Sequence[str], candidates: int, folder: Path, options: Options
) -> CodedImages:
    """`sample_candidates` as the flags of `evaluate` ask for it."""
    return sample_candidates(
        model,
        prompts,
        candidates,
        folder,
        bundle=options.bundle,
        seed=options.seed,
        sampling=options.sampling(model),
        precision=options.precision,
        batch_size=options.batch_size,
    )


def encode_images(
    model: CogView, images: ImageSet, folder: Path, *, bundle: str, precision: str
) -> CodedImages:
    """The images of a set through the image tokenizer, and back when they are read.

    Args:
        model: whose image tokenizer encodes.
        images: of the size that the image tokenizer was trained for.
        folder: for the codes.
        bundle: the hash of the bundle.
        precision: in which `model` decodes; it encodes in float32.
    """
    grid = model.codec.config.grid
    job = {"bundle": bundle, "of": images.identity}
    size = model.codec.config.image_size
    store = RowStore(
        folder, job, count=len(images), width=grid * grid, batch=_TOGETHER, dtype=np.int32
    )

    def compute(numbers: range) -> Iterator[np.ndarray]:
        for start in range(0, len(numbers), _TOGETHER):
            some = numbers[start : start + _TOGETHER]
            batch = np.zeros((_TOGETHER, size, size, 3), np.uint8)
            bad = []
            for i, image in enumerate(images.read(some)):
                if isinstance(image, BadRecord):
                    bad.append(i)
                else:
                    batch[i] = image
            codes = np.array(model.encode(batch).reshape(_TOGETHER, -1)[: len(some)])
            codes[bad] = -1
            yield codes

    store.fill(compute, "encode")
    name = f"{images.name} through the image tokenizer"
    return CodedImages(model, store, (grid, grid), name, precision)


def score_candidates(
    score: Callable[[Sequence[np.ndarray], Sequence[str]], Float[np.ndarray, " b"]],
    images: ImageSet,
    texts: Sequence[str],
    folder: Path,
    scorer: Mapping[str, Any],
    label: str,
) -> Float[np.ndarray, " n"]:
    """How well each image fits its text, float32 [n]; NaN where there is no image.

    Args:
        score: uint8 images [h, w, 3] of any sizes and their texts -> a number each.
        images: the set.
        texts: one for each image, or for each group of as many images.
        folder: for the scores.
        scorer: all that the scores depend on, beside the images and texts.
        label: of the progress line.
    """
    job = {"scorer": dict(scorer), "of": images.identity, "texts": sha256_of(texts)}
    store = RowStore(folder, job, count=len(images), width=1, batch=_TOGETHER)
    each, rest = divmod(len(images), len(texts))
    assert not rest, (len(images), len(texts))

    def compute(numbers: range) -> Iterator[np.ndarray]:
        for start in range(0, len(numbers), _TOGETHER):
            some = numbers[start : start + _TOGETHER]
            good = good_images(images, some)
            scores = np.full((len(some), 1), np.nan, np.float32)
            if good:
                found = score(list(good.values()), [texts[i // each] for i in good])
                scores[[some.index(i) for i in good], 0] = found
            yield scores

    store.fill(compute, label)
    return store.read(range(store.count))[:, 0]


def best_of(
    scores: Float[np.ndarray, "prompts candidates"], count: int, *, lowest: bool
) -> Int[np.ndarray, " prompts"]:
    """The number, among all images, of the best of the first `count` candidates of each prompt.

    Args:
        scores: [prompts, candidates].
        count: how many candidates there are to choose from.
        lowest: whether a lower score is better.
    """
    ranked = np.where(np.isnan(scores), np.inf, scores if lowest else -scores)[:, :count]
    return np.arange(len(scores)) * scores.shape[1] + np.argmin(ranked, axis=1)


def sha256_of(texts: Sequence[str]) -> str:
    """The hash of texts, by which rows on disk know what they are of."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
