"""Parallel decoding: several tokens of a row in one pass, and the same tokens all the same.

A token is the largest of the logits with noise, and the noise is a function of the row's key and
the place alone. So what is sampled one by one is the fixed point of a Jacobi iteration with that
noise (Wiggers and Hoogeboom 2020, arXiv 2002.09928): a window of W guesses goes through the model
at once, which samples a token for each of the W places. The first depends on no guess. Each further
one is right if the guess before it was, so all up to the first guess that was wrong are kept, and
the others are the next guesses. Nothing is approximate: products of other shapes round
otherwise, and only where two logits are that close another token could come.

Legend: B rows, C tokens to sample, W the window, V tokens that may be sampled.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cogview_jax.models.linear import matvec_product
from cogview_jax.models.transformer import Transformer, cached_forward
from cogview_jax.runtime.errors import InputError
from cogview_jax.sampling.decode import RowSeeds, Sequences, begin, split_weights
from cogview_jax.sampling.filters import RowSettings, guided, sample_token


class Windows(NamedTuple):
    """Rows on their way.

    sequences: from `decode.prefill`, with the cache as it is now. line: int32 [B, 1 + C + W - 1],
    the token before the first that is sampled, then the latest token of each place. done: int32
    [B], how many of them are right. reached: int32 [B], how many there are. passes: int32 [B], how
    often the model ran for a row that was not finished.
    """

    sequences: Sequences
    line: jax.Array
    done: jax.Array
    reached: jax.Array
    passes: jax.Array

    @classmethod
    def of(cls, sequences: Sequences, count: int, window: int) -> "Windows":
        """Sequences of which nothing is sampled yet, with room for count + window - 1 tokens."""
        rows = len(sequences.token)
        line = jnp.zeros((rows, count + window), jnp.int32).at[:, 0].set(sequences.token)
        return cls(sequences, line, *(jnp.zeros(rows, jnp.int32) for _ in range(3)))


@functools.partial(jax.jit, static_argnames=("model", "count", "first", "window"))
def _begin(*prompts: Any, model: Transformer, count: int, first: int, window: int) -> Windows:
    """`decode.begin` and `Windows.of` in one program."""
    sequences = begin(*prompts, model=model, count=count + window - 1, first=first)
    return Windows.of(sequences, count, window)


@functools.partial(
    jax.jit,
    static_argnames=("model", "count", "first", "last", "window", "above", "guide"),
    donate_argnames="windows",
)
def decode_parallel(
    params: Mapping[str, Any],
    windows: Windows,
    settings: RowSettings,
    given: jax.Array | np.ndarray | None = None,
    until: int | None = None,
    *,
    model: Transformer,
    count: int,
    first: int,
    last: int,
    window: int,
    above: int,
    end: int | None = None,
    guide: bool = False,
) -> Windows:
    """The first C of each line behind its token are then those that `decode` samples.

    `windows` is used up: its cache is written in place. All rows take as many passes as the
    slowest; those of a row are what it would take alone.

    Args:
        params, settings, given, model, count, first, last, guide: see `decode.in_parts`.
        windows: from `Windows.of`, or from here.
        until: stops as soon as every row has so many tokens, or has ended; None for `count`.
        window: how many places go through the model at once, W.
        above: the first guess of a place is the token so many places before it, such as the code
            above it in an image, once there is one.
        end: an id that ends a row early; what comes behind it may be any tokens. None for no such.
    """
    sequences, until = windows.sequences, count if until is None else until
    rows = len(sequences.token)
    start = sequences.slot
    # As `decode` splits them for so many rows, so that the products are the same.
    params, head = split_weights(params, rows * window, model=model, first=first, last=last)
    own = jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf), window), settings)
    known = jnp.full((rows, count + window - 1), -1, jnp.int32)
    if given is not None:
        known = known.at[:, :count].set(given)
    ahead = jnp.arange(window)

    def advance(now: Windows) -> Windows:
        # Rows that are finished sample their last token again.
        done = jnp.minimum(now.done, count - 1)
        places = done[:, None] + ahead
        tokens = _guesses(now, places - 1, known, above)
        positions = jnp.minimum(sequences.position[:, None] + places, model.positions - 1)
        hidden, cache = cached_forward(
            model,
            params,
            tokens,
            positions,
            sequences.cache_mask,
            now.sequences.cache,
            start + done,
        )
        logits = matvec_product(hidden, head, jnp.float32)
        keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(sequences.keys, places)
        if guide:
            with_text, without = jnp.split(logits.reshape(rows * window, -1), 2)
            flat, keys = guided(with_text, without, own.guidance), keys[: rows // 2]
        else:
            flat = logits.reshape(rows * window, -1)
        sampled = first + sample_token(flat, keys.reshape(-1), own).reshape(-1, window)
        if guide:
            sampled = jnp.tile(sampled, (2, 1))
        given = jnp.take_along_axis(known, places, axis=1)
        sampled = jnp.where(given < 0, sampled, given)
        right = jnp.cumprod(sampled[:, :-1] == tokens[:, 1:], axis=1, dtype=jnp.int32)
        kept = jnp.minimum(1 + jnp.sum(right, axis=1), count - done)
        line = jax.vmap(functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=0))(
            now.line, sampled, 1 + done
        )
        reached = jnp.maximum(now.reached, done + window)
        finished = jnp.where(now.done < count, done + kept, now.done)
        passes = now.passes + _is_open(now, count, end)
        return Windows(now.sequences._replace(cache=cache), line, finished, reached, passes)

    return jax.lax.while_loop(
        lambda now: jnp.any(_is_open(now, count, end) & (now.done < until)), advance, windows
    )


def _guesses(now: Windows, at: jax.Array, known: jax.Array, above: int) -> jax.Array:
    """What goes into the model: the tokens at the places `at`, int32 [B, W], counted from -1.

    They are the latest tokens; of a place that has none yet the one that is `known`, or else the
    one above it, which may be a guess too.
    """
    take = functools.partial(jnp.take_along_axis, axis=1)
    reached = now.reached[:, None]
    from_above = jnp.where(at >= above, at - above, reached - 1)
    place = jnp.where(at < reached, at, jnp.minimum(from_above, reached - 1))
    guess, given = take(now.line, place + 1), take(known, jnp.maximum(at, 0))
    return jnp.where((given >= 0) & (at >= reached), given, guess)


def _is_open(now: Windows, count: int, end: jax.Array | int | None) -> jax.Array:
    """Which rows have tokens to sample, bool [B]."""
    open_rows = now.done < count
    if end is not None:
        right = jnp.arange(count) < now.done[:, None]
        open_rows &= ~jnp.any((now.line[:, 1 : 1 + count] == end) & right, axis=1)
    return open_rows


def in_windows(
    params: Mapping[str, Any],
    tokens: jax.Array | np.ndarray,
    valid: jax.Array | np.ndarray,
    keys: jax.Array | RowSeeds,
    settings: RowSettings,
    positions: jax.Array | np.ndarray | None = None,
    given: jax.Array | np.ndarray | None = None,
    rows: jax.Array | np.ndarray | None = None,
    *,
    every: int,
    model: Transformer,
    count: int,
    first: int,
    window: int,
    **options: Any,
) -> Iterator[Windows]:
    """What `decode.in_parts` does, by `decode_parallel`; see these two for the arguments.

    Yields:
        The rows once all have `every` tokens, twice as many, and so on up to `count`. They are used
        up by the next.
    """
    prompts = (params, tokens, valid, keys, rows, positions)
    sizes = {"count": count, "window": window}
    windows = _begin(*prompts, model=model, first=first, **sizes)
    for until in range(every, count + every, every):
        windows = decode_parallel(
            params, windows, settings, given, until, model=model, first=first, **sizes, **options
        )
        yield windows


def generate_parallel(*prompts: Any, count: int, **options: Any) -> tuple[jax.Array, jax.Array]:
    """What `in_windows` gives, at once: tokens int32 [B, C], and the passes of each row, int32 [B].

    Its arguments, but for `every`.
    """
    (whole,) = in_windows(*prompts, count=count, every=count, **options)
    return whole.line[:, 1 : 1 + count], whole.passes


def usable_window(model: Transformer, window: int, count: int) -> int:
    """The `window` that is asked for, at most `count`.

    Raises:
        InputError: a window of several places for a model that cannot have one.
    """
    if window > 1 and model.config.conventions.tensor_norm:
        raise InputError(
            f"parallel_window {window}: in a model of compat 'official' what comes later"
            " changes what came before, since its LayerNorm is of the whole row: leave it at 0"
        )
    if window > 1 and model.config.sparse:
        raise InputError(
            f"parallel_window {window}: a model of sparse attention samples one token after the"
            " other: leave it at 0"
        )
    return min(window, count)
