"""Decoding: a prompt's cache is filled once, then jitted scans sample a fixed count of tokens.

Legend: B batch, P prompt length with padding on the left, C tokens to sample, S slots of the cache.
"""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cogview_jax.models.linear import matvec_parts, matvec_product, split_for_cores
from cogview_jax.models.pivots import PIVOT_STREAM, draw_pivot_slots
from cogview_jax.models.transformer import Cache, Transformer, cached_forward, empty_cache
from cogview_jax.runtime.bounds import need_seed
from cogview_jax.runtime.compile_ahead import compile_ahead, on_device, only_device
from cogview_jax.runtime.random_key import need_settings, random_key
from cogview_jax.sampling.filters import RowSettings, guided, sample_token

#: In a row of tokens: this one is to be sampled.
OPEN = -1
#: Slots of the smallest cache that a larger one follows, and tokens sampled with one at least.
SMALLEST, FEWEST = 256, 64


def seed_key(seed: int) -> jax.Array:
    """The typed random key of a seed; see `need_seed`."""
    need_seed(seed)
    return random_key(seed)


class RowSeeds(NamedTuple):
    """What the random key of each row follows from: uint32 [B] each; see `fold_keys`.

    stream: a number that all keys are folded with at last; None for the keys themselves.
    """

    seeds: Any
    prompt_ids: Any
    indices: Any
    stream: Any = None

    def each(self, change: Callable[[np.ndarray], np.ndarray]) -> "RowSeeds":
        """The same for the rows that `change` makes of these."""
        seeds, prompt_ids, indices = map(change, self[:3])
        return RowSeeds(seeds, prompt_ids, indices, self.stream)


def row_seeds(
    seeds: int | Sequence[int], prompts: Sequence[str], indices: Sequence[int]
) -> RowSeeds:
    """What the key of each row follows from: its seed, its prompt and its index.

    Nothing else enters, so a row's tokens are the same whatever is sampled beside it. Raises
    InputError for a seed of more than 32 bits.
    """
    seeds = [seeds] * len(prompts) if isinstance(seeds, int) else seeds
    for seed in set(seeds):
        need_seed(seed)
    need_settings()
    words = [hashlib.sha256(prompt.encode()).digest()[:4] for prompt in prompts]
    return RowSeeds(
        np.array(seeds, np.uint32),
        np.array([int.from_bytes(word) for word in words], np.uint32),
        np.array(indices, np.uint32),
    )


def sample_keys(
    seeds: int | Sequence[int], prompts: Sequence[str], indices: Sequence[int]
) -> jax.Array:
    """One typed random key a row, of its `row_seeds`."""
    return _keys_of_rows(*row_seeds(seeds, prompts, indices)[:3])


@jax.jit
def _keys_of_rows(seeds: jax.Array, prompt_ids: jax.Array, indices: jax.Array) -> jax.Array:
    """The same, from uint32 [B] each: one program, where each fold would be one of its own."""
    return fold_keys(jax.vmap(random_key)(seeds), prompt_ids, indices)


def _typed(rows: RowSeeds) -> jax.Array:
    """The keys of rows, within a program."""
    keys, fold = _keys_of_rows(*rows[:3]), jax.vmap(jax.random.fold_in, (0, None))
    return keys if rows.stream is None else fold(keys, rows.stream)


def fold_keys(roots: jax.Array, prompt_ids: jax.Array, indices: jax.Array) -> jax.Array:
    """The key of each row: that of its seed, folded with its prompt's number and its index.

    Args:
        roots: typed keys of the seeds, [B].
        prompt_ids: uint32 [B], the first four bytes of the SHA-256 of the prompts in UTF-8, the
            first byte being the most significant.
        indices: uint32 [B].
    """
    fold = jax.vmap(jax.random.fold_in)
    return fold(fold(roots, prompt_ids), indices)


class Sequences(NamedTuple):
    """Sequences on their way, B at a time: what `decode` goes on from.

    token: int32 [B], the last token of each, which the cache does not hold yet. position: int32
    [B], its place among the learned positions. cache_mask: bool [B, S], the slots of the cache that
    hold tokens, or will. cache: see `empty_cache`. slot: int32, that of `token`. keys: [B],
    one a row. sampled: int32, how many tokens were sampled.
    """

    token: jax.Array
    position: jax.Array
    cache_mask: jax.Array
    cache: Cache
    slot: jax.Array
    keys: jax.Array
    sampled: jax.Array


@functools.partial(jax.jit, static_argnames=("model", "count", "first"))
def prefill(
    params: Mapping[str, Any],
    tokens: jax.Array,
    valid: jax.Array,
    keys: jax.Array,
    positions: jax.Array | None = None,
    *,
    model: Transformer,
    count: int,
    first: int,
) -> Sequences:
    """Prompts with room for `count` tokens; see `in_parts` for the arguments.

    The last token of a prompt is left to `decode`, whose every step is then the same.
    """
    batch, prompt = tokens.shape
    if positions is None:
        positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
    cache_mask = jnp.concatenate([valid, jnp.ones((batch, count), bool)], axis=1)
    pivots = None
    if model.config.sparse:
        # What will be sampled is known by its kind.
        whole = jnp.concatenate([tokens, jnp.full((batch, count), first, tokens.dtype)], axis=1)
        streams = jax.vmap(jax.random.fold_in, (0, None))(keys, PIVOT_STREAM)
        pivots = draw_pivot_slots(model.config, model.vocabulary, whole, cache_mask, streams)
    # The last token sampled is never read.
    cache = empty_cache(model, batch, prompt + count - 1, pivots)
    cache_mask = cache_mask[:, :-1]
    if prompt > 1:
        head, at = tokens[:, :-1], positions[:, :-1]
        _, cache = cached_forward(model, params, head, at, cache_mask, cache, 0)
    slot, sampled = jnp.int32(prompt - 1), jnp.int32(0)
    return Sequences(tokens[:, -1], positions[:, -1], cache_mask, cache, slot, keys, sampled)


@jax.jit
def expand(sequences: Sequences, rows: jax.Array, keys: jax.Array) -> Sequences:
    """Sequences that go on from the same prompts: number i from `rows[i]`, with `keys[i]`.

    The cache of a prompt is so computed once for all its candidates. Not for sparse attention,
    where a sequence's key tells its pivots already.

    Args:
        sequences: from `prefill`, U of them.
        rows: int32 [B], below U.
        keys: one typed key a row, [B].
    """
    token, position, cache_mask, cache = jax.tree.map(
        lambda leaf: leaf[rows],
        (sequences.token, sequences.position, sequences.cache_mask, sequences.cache),
    )
    return Sequences(token, position, cache_mask, cache, sequences.slot, keys, sequences.sampled)


@functools.partial(jax.jit, static_argnames=("model", "count", "first"))
def begin(
    params: Mapping[str, Any],
    tokens: jax.Array,
    valid: jax.Array,
    keys: jax.Array | RowSeeds,
    rows: jax.Array | None = None,
    positions: jax.Array | None = None,
    *,
    model: Transformer,
    count: int,
    first: int,
) -> Sequences:
    """`prefill`, the keys of `row_seeds`, and `expand` to `rows`, in one program.

    See `in_parts` for the arguments.
    """
    typed = _typed(keys) if isinstance(keys, RowSeeds) else keys
    own = typed[: len(tokens)]
    sequences = prefill(
        params, tokens, valid, own, positions, model=model, count=count, first=first
    )
    return sequences if rows is None else expand(sequences, rows, typed)


def segment_lengths(model: Transformer, prompt: int, count: int) -> list[int]:
    """How many tokens are sampled with each size of the cache: `count` in all.

    XLA reads all slots of a cache for every token, empty ones too. On a CPU a cache therefore
    begins small and is doubled up to the whole length: over 1,024 tokens 72% of that is read. Every
    size is a program of its own, so elsewhere, where kernels read only what is filled or compiling
    takes longer, there is one.

    Args:
        model: sparse attention keeps one size, to which its pivots belong.
        prompt: tokens before those that are sampled, their padding included.
        count: tokens to sample.
    """
    ends = [prompt + count]
    while (
        model.programs.platform == "cpu"
        and not model.config.sparse
        and (half := ends[0] // 2) >= max(SMALLEST, prompt + FEWEST)
    ):
        ends.insert(0, half)
    return [end - start for start, end in zip([prompt, *ends], ends, strict=False)]


@functools.partial(jax.jit, static_argnames="count")
def grow(sequences: Sequences, count: int) -> Sequences:
    """Sequences with room for `count` more tokens."""

    def longer(leaf: jax.Array) -> jax.Array:
        return jnp.pad(leaf, ((0, 0), (0, 0), (0, count), (0, 0)))

    cache_mask = jnp.pad(sequences.cache_mask, ((0, 0), (0, count)), constant_values=True)
    return sequences._replace(cache_mask=cache_mask, cache=jax.tree.map(longer, sequences.cache))


def split_weights(
    params: Mapping[str, Any], rows: int, *, model: Transformer, first: int, last: int
) -> tuple[Mapping[str, Any], list[jax.Array]]:
    """The parameters, and the head of the ids first..last - 1, as `rows` rows are multiplied with.

    Both are split for the cores of a CPU (`models.linear.matvec_parts`). The parts of the head are
    [V_i, D], for `matvec_product`; of the rest of it nothing is read.
    """
    table = params["word_embedding"][first:last].astype(model.policy.compute)
    parts = matvec_parts(rows, model.programs.platform)
    return split_for_cores(params, parts), jnp.array_split(table, parts)


@functools.partial(
    jax.jit,
    static_argnames=("model", "count", "first", "last", "guide"),
    donate_argnames="sequences",
)
def decode(
    params: Mapping[str, Any],
    sequences: Sequences,
    settings: RowSettings,
    given: jax.Array | None = None,
    *,
    model: Transformer,
    count: int,
    first: int,
    last: int,
    guide: bool = False,
) -> tuple[Sequences, jax.Array]:
    """The sequences `count` tokens further, and those tokens: int32 [B, C].

    See `in_parts` for the arguments. `sequences` is used up: its cache is written in place.
    """

    rows = len(sequences.token)
    single = rows == 1
    params, head = split_weights(params, rows, model=model, first=first, last=last)  # once for all

    def carried(cache: Cache) -> Cache:
        # Of a single row without the axis of rows: XLA drops it for the products that read the
        # cache, and would copy what it carries in another form.
        return jax.tree.map(lambda leaf: leaf[0], cache) if single else cache

    def whole(cache: Cache) -> Cache:
        return jax.tree.map(lambda leaf: leaf[None], cache) if single else cache

    def advance(now: Sequences, known: jax.Array | None) -> tuple[Sequences, jax.Array]:
        hidden, cache = cached_forward(
            model,
            params,
            now.token[:, None],
            now.position[:, None],
            now.cache_mask,
            whole(now.cache),
            now.slot,
        )
        logits = matvec_product(hidden[:, -1], head, jnp.float32)
        keys = jax.vmap(jax.random.fold_in, (0, None))(now.keys, now.sampled)
        if guide:
            conditional, bare = jnp.split(logits, 2)
            logits, keys = guided(conditional, bare, settings.guidance), keys[: rows // 2]
        token = first + sample_token(logits, keys, settings)
        if guide:
            token = jnp.tile(token, 2)  # both halves go on with it
        if known is not None:
            token = jnp.where(known < 0, token, known)
        following = now._replace(
            token=token,
            position=now.position + 1,
            cache=carried(cache),
            slot=now.slot + 1,
            sampled=now.sampled + 1,
        )
        return following, token

    known = None if given is None else given.T
    sequences = sequences._replace(cache=carried(sequences.cache))
    sequences, tokens = jax.lax.scan(advance, sequences, known, length=count)
    return sequences._replace(cache=whole(sequences.cache)), tokens.T


def in_parts(
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
    last: int,
    guide: bool = False,
) -> Iterator[jax.Array]:
    """Continues each prompt by `count` tokens with ids in [first, last), as they are sampled.

    Args:
        params: from `unstack_layers`; `prepare_decode_params` makes them fast.
        tokens: int32 [B, P], prompts that end together (`tokenizers.layout.left_padded`).
        valid: bool [B, P], False on the padding, which has no position and is never seen.
        keys: one typed key a row, or what they follow from; token i uses the key folded with i. A
            row's pivots of sparse attention follow from its key and prompt.
        settings: of each row; with `guide`, of each row of the first half.
        positions: int32 [B, P], of the prompts' tokens, where they are not simply counted; what is
            sampled counts on from the last.
        given: int32 [B, C], tokens that are known already; -1 is sampled.
        rows: int32 [B], which of the prompts each row continues (`expand`); its own where None.
        every: a part ends where so many tokens are sampled since the last such place, and where the
            cache grows.
        model: the transformer of `params`.
        count: how many tokens each row gets, C.
        first: the first id that may be sampled; only this part of the head is computed.
        last: one past the last id that may be sampled.
        guide: the second half of the rows are those of the first without their texts, for guidance;
            both get the same tokens.

    Yields:
        int32 [B, n], the n adding up to C.
    """
    sampled, sequences = 0, None
    for length in segment_lengths(model, tokens.shape[1], count):
        end, part = sampled + length, min(every - sampled % every, length)
        ids: dict[str, Any] = {"model": model, "first": first}
        span = {**ids, "last": last, "guide": guide}
        if sequences is None:
            prompts = (params, tokens, valid, keys, rows, positions)
            ids["count"] = length
            with contextlib.ExitStack() as stack:
                if (device := only_device(params)) is not None:  # compiles both at the same time
                    shapes = on_device(begin.trace(*prompts, **ids).out_info, device)
                    known = None if given is None else given[:, :part]
                    following = (params, shapes, settings, known)
                    stack.enter_context(compile_ahead(decode, *following, count=part, **span))
                sequences = begin(*prompts, **ids)
        else:
            sequences = grow(sequences, length)
        while sampled < end:
            part = min(every - sampled % every, end - sampled)
            known = None if given is None else given[:, sampled : sampled + part]
            sequences, new = decode(params, sequences, settings, known, count=part, **span)
            sampled += part
            yield new


def generate(*prompts: Any, count: int, **options: Any) -> jax.Array:
    """What `in_parts` gives, at once: int32 [B, C]. Its arguments, but for `every`."""
    sampled = list(in_parts(*prompts, count=count, every=count, **options))
    return sampled[0] if len(sampled) == 1 else jnp.concatenate(sampled, axis=1)
