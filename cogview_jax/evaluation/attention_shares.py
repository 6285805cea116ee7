"""What the heads of a transformer attend to while it makes an image, as shares of their attention.

CogView (arXiv 2105.13290) finds heads that attend by position, heads that read the text, and heads
that give most of their attention to a few tokens. A head has one number for each:

- position: what goes to the best `OFFSETS` places relative to the query, in rows and columns;
- text: what goes to the tokens of the caption;
- few tokens: what goes to the best `KEYS` tokens, the same for all queries, outside the caption.

All are means over the queries, which are the codes of the image, and over images. A weight may
count for two of them: that of a code is part of an offset, and may be one of the few tokens. The
longer the caption and the smaller the image, the more of each has a head that attends to all tokens
alike, so a head's kind is the share that exceeds this one the most.

Legend: T tokens, N heads, Q codes (the queries), G rows of codes, L layers, W tokens of text, K
tokens outside the text: the commands, and then the codes, O of the best offsets and E of the best
tokens outside the text. `*B` is any axes, such as [L, N].
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cogview_jax.tokenizers.layout import Layout
from cogview_jax.tokenizers.vocabulary import COMMANDS

#: The kinds of heads, in the order of `HeadShares.shares`.
KINDS = ("position", "text", "few tokens")
#: What a head is called none of whose shares exceeds that of equal attention by MARGIN.
MIXED, MARGIN = "mixed", 0.1
#: How many offsets count for "position", and how many tokens for "few tokens".
OFFSETS, KEYS = 5, 3


@dataclass(frozen=True)
class Places:
    """Where the parts of a sequence of text_to_image are.

    Attributes:
        text: the indices of the tokens of the caption.
        commands: those of the commands before the image.
        codes: those of the image's codes, row by row.
        names: what the tokens outside the text are called, commands first, in the order of K.
    """

    text: Int[np.ndarray, " W"]
    commands: Int[np.ndarray, " C"]
    codes: Int[np.ndarray, " Q"]
    names: tuple[str, ...]

    @property
    def grid(self) -> int:
        """The rows of the image, which has as many columns."""
        return round(len(self.codes) ** 0.5)


def places_of(layout: Layout, row: Int[np.ndarray, " T"]) -> Places:
    """Returns the places of the tokens `row` of a sequence that ends with the last code."""
    vocabulary = layout.vocabulary
    commands = np.flatnonzero(row >= vocabulary.commands_start)
    codes = np.flatnonzero(row < vocabulary.codes)
    text = np.flatnonzero((row >= vocabulary.codes) & (row < vocabulary.commands_start))
    grid = layout.region("image").grid
    names = [f"[{COMMANDS[row[place] - vocabulary.commands_start]}]" for place in commands]
    names += [f"code {number // grid},{number % grid}" for number in range(len(codes))]
    return Places(text, commands, codes, tuple(names))


class AttentionMeans(NamedTuple):
    """Mean attention of the codes, which adds up to 1 over `text` and `keys`.

    Attributes:
        text: on all tokens of the text together.
        keys: on each token outside the text.
        offsets: on each place relative to the query. The last row of the axis of rows is the
            query's own; the query is in the middle of the axis of columns.
    """

    text: Float[np.ndarray, " *B"]
    keys: Float[np.ndarray, "*B K"]
    offsets: Float[np.ndarray, "*B G 2*G-1"]


def text_attention(
    weights: Float[np.ndarray, "N T T"], places: Places
) -> Float[np.ndarray, "N W Q"]:
    """Returns the weight of each token of the text for each code of the image."""
    return weights[:, places.codes][..., places.text].swapaxes(1, 2)


def attention_means(weights: Float[np.ndarray, "N T T"], places: Places) -> AttentionMeans:
    """Returns the means over the codes of one image, for each head, in float64."""
    grid, heads = places.grid, len(weights)
    outside = np.concatenate([places.commands, places.codes])
    means = np.zeros((heads, weights.shape[1]))
    offsets = np.zeros((heads, 2 * grid - 1, 2 * grid - 1))
    # One query at a time: all of them are hundreds of megabytes of a large model.
    for query, (row, column) in zip(places.codes, np.ndindex(grid, grid), strict=True):
        seen = np.asarray(weights[:, query], np.float64)
        means += seen / grid**2
        above, left = grid - 1 - row, grid - 1 - column
        image = seen[:, places.codes].reshape(heads, grid, grid)
        offsets[:, above : above + grid, left : left + grid] += image
    # Codes after the query have no weight: no row below that of the query is needed.
    return AttentionMeans(
        means[:, places.text].sum(axis=1), means[:, outside], offsets[:, :grid] / grid**2
    )


def equal_weights(length: int) -> Float[np.ndarray, "1 T T"]:
    """Returns the weights of a head that gives all tokens up to the query the same weight."""
    seen = np.tril(np.ones((length, length)))
    return (seen / seen.sum(axis=1, keepdims=True))[None]


def mean_over(images: Iterable[AttentionMeans]) -> AttentionMeans:
    """Returns the mean over images of the same size, of which one at a time is in memory."""
    rest = iter(images)
    total, count = next(rest), 1
    for image in rest:
        total = AttentionMeans(*(one + more for one, more in zip(total, image, strict=True)))
        count += 1
    return AttentionMeans(*(each / count for each in total))


class HeadShares(NamedTuple):
    """What each head attends to.

    Attributes:
        shares: one for each of KINDS, 0 to 1.
        offsets: the best offsets, rows and columns from the query, the best first. Rows are 0 or
            negative, above the query.
        offset_shares: what each of them has.
        keys: the best tokens outside the text, as numbers in `Places.names`.
        key_shares: what each of them has.
        spread: over how many offsets the attention within the image is spread: e to the power of
            its entropy. 1 is a single offset; 0 is a head that never looks at the image.
    """

    shares: Float[np.ndarray, "*B 3"]
    offsets: Int[np.ndarray, "*B O 2"]
    offset_shares: Float[np.ndarray, "*B O"]
    keys: Int[np.ndarray, "*B E"]
    key_shares: Float[np.ndarray, "*B E"]
    spread: Float[np.ndarray, " *B"]

    def kinds(self, equal: Float[np.ndarray, " 3"]) -> list[list[str]]:
        """Returns the kind of each head, layer by layer: one of KINDS, or MIXED.

        Args:
            equal: the shares of a head that attends to all tokens alike.
        """
        return [
            [KINDS[int(head.argmax())] if head.max() >= MARGIN else MIXED for head in layer]
            for layer in self.shares - equal
        ]


def head_shares(means: AttentionMeans) -> HeadShares:
    """Returns the shares of heads, and the offsets and tokens that they are of."""
    columns = means.offsets.shape[-1]
    flat = means.offsets.reshape(*means.offsets.shape[:-2], -1)
    best, offset_shares = _largest(flat, OFFSETS)
    rows = best // columns - (means.offsets.shape[-2] - 1)
    offsets = np.stack([rows, best % columns - columns // 2], axis=-1)
    keys, key_shares = _largest(means.keys, KEYS)
    shares = [offset_shares.sum(axis=-1), means.text, key_shares.sum(axis=-1)]
    tiny, total = np.finfo(float).tiny, flat.sum(axis=-1)
    inside = flat / np.maximum(total, tiny)[..., None]
    entropy = -np.sum(inside * np.log(np.maximum(inside, tiny)), axis=-1)
    spread = np.where(total > 0, np.exp(entropy), 0)
    return HeadShares(np.stack(shares, axis=-1), offsets, offset_shares, keys, key_shares, spread)


def _largest(
    values: Float[np.ndarray, "*B n"], count: int
) -> tuple[Int[np.ndarray, "*B m"], Float[np.ndarray, "*B m"]]:
    """The `count` largest values, or all where there are fewer, the largest first: where, what."""
    order = np.argsort(-values, axis=-1, kind="stable")[..., :count]
    return order, np.take_along_axis(values, order, axis=-1)
