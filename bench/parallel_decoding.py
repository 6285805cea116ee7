"""Measures parallel decoding with a bundle: passes, equality with plain sampling, and time.

    .venv/bin/python -m bench.parallel_decoding passes   --bundle runs/demo/bundle
    .venv/bin/python -m bench.parallel_decoding equality --bundle runs/demo/bundle --images 1000
    .venv/bin/python -m bench.parallel_decoding time     --bundle runs/demo/bundle
    .venv/bin/python -m bench.parallel_decoding time     --model tutorial

`passes` has the mean over the prompts of how many passes an image takes. `equality` compares the
codes of both ways; of the first code that differs in an image it shows how far the two candidates
are apart in the logits with noise of plain sampling. `time` measures what a pass costs, in steps of
plain decoding: all codes are given, so every pass keeps its whole window. Both are measured in
turns, by the clock and by the time of all cores, which tells the same on a machine that others use.
Where a pass has more codes than it costs steps, parallel decoding is faster.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.decode import CODES, MODELS, PROMPT, random_params
from cogview_jax.data import emoji_set
from cogview_jax.models.linear import matvec_parts, split_for_cores
from cogview_jax.models.transformer import Transformer
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.pipeline.load import load
from cogview_jax.runtime.precision import policy
from cogview_jax.sampling.decode import decode, prefill, sample_keys, segment_lengths
from cogview_jax.sampling.engine import SamplingRequest, Span
from cogview_jax.sampling.filters import filtered, guided, row_settings
from cogview_jax.sampling.options import SamplingConfig
from cogview_jax.sampling.parallel import Windows, decode_parallel
from cogview_jax.shapes.fresh import fresh_scenes
from cogview_jax.tokenizers.vocabulary import Vocabulary

#: Of so many images that differ `equality` shows how close it was.
SHOWN = 10
#: So many codes are measured by `time`.
COUNT = 64


def main() -> None:
    """Measures what is asked for and prints it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("passes", "equality", "time"))
    parser.add_argument("--bundle", default="emoji")
    parser.add_argument("--prompts", choices=("shapes", "emoji"), help="by default the bundle's")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--windows", default="8,16,32")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", choices=MODELS, help="for time: random weights, no bundle")
    parser.add_argument("--layers", type=int, help="of --model; its own where not given")
    parser.add_argument("--batch", type=int, help="rows; by default 64, for time 1")
    parser.add_argument("--turns", type=int, default=5, help="for time")
    given = parser.parse_args()
    windows = [int(window) for window in given.windows.split(",")]
    batch = given.batch or (1 if given.what == "time" else 64)
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {given.precision}", flush=True)
    if given.what == "time" and given.model:
        config = dataclasses.replace(
            MODELS[given.model], layers=given.layers or MODELS[given.model].layers
        )
        model = Transformer(config, Vocabulary().size, PROMPT + CODES, policy(given.precision))
        costs(model, random_params(model), PROMPT, CODES, windows, batch, given.turns)
        return
    model = load(given.bundle, dtype=given.precision)
    span, engine = Span.of_image(model.layout), model.parts.engine
    if given.what == "time":
        count = (span.prompt, span.count)
        costs(engine.model, engine.params, *count, windows, batch, given.turns)
        return
    kind = given.prompts or ("emoji" if "emoji" in given.bundle else "shapes")
    requests = requests_of(model, kind, given.images, given.seed)
    print(f"{given.bundle}, {requests[0].sampling}, {len(requests)} prompts", flush=True)
    measure = passes if given.what == "passes" else equality
    for window in windows:
        measure(model, requests, window, batch)


def requests_of(model: CogView, kind: str, count: int, seed: int) -> list[SamplingRequest]:
    """Requests of captions of the embedded data, half of them in each language."""
    if kind == "shapes":
        texts = [text for scenes in fresh_scenes(-(-count // 2), seed) for text in scenes.texts]
    else:
        rng, concepts = np.random.default_rng(seed), emoji_set.concepts()
        texts = [
            emoji_set.caption(
                concepts[int(rng.integers(len(concepts)))],
                emoji_set.STYLES[int(rng.integers(len(emoji_set.STYLES)))],
                ("en", "zh")[i % 2],
            )
            for i in range(count)
        ]
    config = model.generation.default_sampling
    return [SamplingRequest(text, seed, 0, config) for text in texts[:count]]


def batches_of(
    model: CogView, requests: list[SamplingRequest], window: int, batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """The codes of requests, int32 [n, count], and the passes of each, int32 [n]."""
    rows = model.generation.prompt_rows([request.prompt for request in requests])
    engine, span = model.parts.engine, Span.of_image(model.layout)
    codes, counted = [], []
    for start in range(0, len(requests), batch):
        some = requests[start : start + batch]
        # The last batch is filled up, so that it needs no program of its own.
        filled = [*some, *[some[0]] * (min(batch, len(requests)) - len(some))]
        prompts = [rows[request.prompt] for request in filled]
        found = engine.in_windows(filled, prompts, span, window)
        codes.append(found[0][: len(some)])
        counted.append(found[1][: len(some)])
    return np.concatenate(codes), np.concatenate(counted)


def passes(model: CogView, requests: list[SamplingRequest], window: int, batch: int) -> None:
    """Prints how many passes an image takes."""
    codes, counted = batches_of(model, requests, window, batch)
    mean, count = counted.mean(), codes.shape[1]
    spread = counted.std(ddof=1) / len(counted) ** 0.5
    print(
        f"W = {window:3}: {mean:5.1f} ± {spread:.1f} passes for {count} codes (standard error),"
        f" {count / mean:.2f} codes a pass; {counted.min()} to {counted.max()} passes",
        flush=True,
    )


def equality(model: CogView, requests: list[SamplingRequest], window: int, batch: int) -> None:
    """Prints how many codes differ from those of plain sampling, and how close these were."""
    rows = model.generation.prompt_rows([request.prompt for request in requests])
    engine, span = model.parts.engine, Span.of_image(model.layout)
    prompts = [rows[request.prompt] for request in requests]
    plain = np.concatenate([*engine.sample(requests, prompts, span, batch)])
    codes, counted = batches_of(model, requests, window, batch)
    unlike = plain != codes
    images = np.flatnonzero(unlike.any(axis=1))
    print(
        f"W = {window:3}: {len(images)} of {len(codes)} images differ, {unlike.sum()} of"
        f" {unlike.size} codes; {codes.shape[1] / counted.mean():.2f} codes a pass",
        flush=True,
    )
    for i in images[:SHOWN]:
        place = int(unlike[i].argmax())
        margin = gap(model, requests[i], prompts[i], plain[i], codes[i], place)
        print(f"  image {i}, code {place}: first to differ, {margin}", flush=True)


def gap(
    model: CogView,
    request: SamplingRequest,
    prompt: np.ndarray,
    plain: np.ndarray,
    other: np.ndarray,
    place: int,
) -> str:
    """How far two codes are apart in what `plain` took the largest of."""
    engine, span, sampling = model.parts.engine, Span.of_image(model.layout), request.sampling

    def logits(prompt: np.ndarray) -> jax.Array:
        row = np.concatenate([prompt, plain[:place]])[None]
        return jnp.asarray(model.logits(row))[:, -1, span.first : span.last]

    own, bare = logits(prompt), logits(engine.layout.tokens({"text": []}))
    settings = row_settings([sampling])
    scores = filtered(guided(own, bare, sampling.guidance), settings)[0]
    if sampling.temperature:
        keys = sample_keys(request.seed, [request.prompt], [request.index])
        key = jax.random.fold_in(keys[0], place)
        scores += jax.random.gumbel(key, scores.shape, jnp.float32, mode="low")
    first, second = (float(scores[codes[place] - span.first]) for codes in (plain, other))
    return f"logits with noise {first:.7f} and {second:.7f}, {first - second:.1e} apart"


def costs(
    model: Transformer,
    params: Any,
    prompt: int,
    codes: int,
    windows: list[int],
    batch: int,
    turns: int,
) -> None:
    """Prints the cost of a pass by window, in steps of plain decoding.

    The first codes of an image are measured. In a long image plain sampling begins there with a
    small cache, and windows have the whole one.
    """
    count, last = min(COUNT, codes), min(8192, model.vocab_size)
    room = segment_lengths(model, prompt, codes)[0]
    tokens, valid = np.zeros((batch, prompt), np.int32), np.ones((batch, prompt), bool)
    keys, settings = sample_keys(0, ["a"] * batch, range(batch)), row_settings([SamplingConfig()])
    settings = jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf), batch), settings)
    ids = {"model": model, "first": 0}
    known = jnp.zeros((batch, count), jnp.int32)

    def begun(room: int) -> Any:
        return jax.block_until_ready(prefill(params, tokens, valid, keys, count=room, **ids))

    def split(rows: int) -> Any:
        # Work that is done once for an image is not part of a step.
        parts = matvec_parts(rows, model.programs.platform)
        return jax.block_until_ready(jax.jit(split_for_cores, static_argnums=1)(params, parts))

    def step() -> tuple[float, float]:
        sequences, own = begun(room), split(batch)
        return timed(lambda: decode(own, sequences, settings, count=count, last=last, **ids))

    def window_pass(window: int) -> tuple[float, float]:
        windows = Windows.of(begun(codes + window - 1), count, window)
        own = split(batch * window)
        sizes = {"window": window, "above": 1, "count": count, "last": last}
        return timed(lambda: decode_parallel(own, windows, settings, known, **sizes, **ids))

    for window in windows:
        ratios, seconds = [], []
        for turn in range(turns + 1):
            (clock, cpu), (clock_pass, cpu_pass) = step(), window_pass(window)
            if not turn:  # compiles
                continue
            number = -(-count // window)
            ratios.append((clock_pass / number * count / clock, cpu_pass / number * count / cpu))
            seconds.append((clock / count, clock_pass / number))
        by_clock, by_cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
        one, whole = (min(column) * 1e3 for column in zip(*seconds, strict=True))
        print(
            f"W = {window:3}, {batch} rows: a pass costs {by_clock:.2f} steps by the clock,"
            f" {by_cpu:.2f} by processor time (medians of {turns} turns);"
            f" at best {one:.2f} ms a step, {whole:.2f} ms a pass",
            flush=True,
        )


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of the clock and of all cores."""
    clock, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(work())
    return time.perf_counter() - clock, time.process_time() - cpu


if __name__ == "__main__":
    main()
