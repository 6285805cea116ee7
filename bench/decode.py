"""Compares the speed of sampling with the memory bandwidth of this machine.

    python -m bench.decode [--model tutorial|4b] [--precision P] [--batches 1,4,16]
        [--contexts 64,1000] [--layers N] [--trace]

To sample a token, the device reads every weight once, the part of the head for the ids that may be
sampled, and the cache of the token's row. These bytes and the measured bandwidth set a limit. The
table has the tokens per second, their share of that limit, and the seconds for an image of 1,024
codes. The command also writes bench/results/decode.json.
"""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.kernels import kernels
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.layer_params import prepare_decode_params
from cogview_jax.models.linear import matvec_parts, split_for_cores
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.files import write_json
from cogview_jax.runtime.hardware import measured_bandwidth
from cogview_jax.runtime.precision import policy
from cogview_jax.runtime.sharding import unbox
from cogview_jax.sampling.decode import (
    Sequences,
    decode,
    prefill,
    sample_keys,
    segment_lengths,
)
from cogview_jax.sampling.filters import row_settings
from cogview_jax.sampling.options import SamplingConfig
from cogview_jax.tokenizers.vocabulary import Vocabulary

RESULT = Path(__file__).parent / "results" / "decode.json"
MODELS = {
    "tutorial": TransformerConfig(layers=12, width=1024, heads=16),
    "4b": TransformerConfig(),
}
POSITIONS, CODES = 1089, 1024
PROMPT = POSITIONS - CODES
#: A timed call samples so many tokens.
COUNT = 32


def random_params(model: Transformer) -> dict[str, Any]:
    """Returns random parameters in the form of `unstack_layers`, in the type of the arithmetic.

    They are made layer by layer, so that a model that only just fits can be made on the device.
    """
    tokens = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)["params"]
    shapes, dtype = unbox(shapes), model.policy.compute

    @jax.jit
    def fill(key: jax.Array) -> Any:
        leaves, form = jax.tree.flatten(layer)
        keys = jax.random.split(key, len(leaves))
        return form.unflatten(
            (0.02 * jax.random.normal(k, leaf.shape)).astype(dtype)
            for k, leaf in zip(keys, leaves, strict=True)
        )

    stack = shapes["blocks"]["block"]
    layer = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), stack)
    blocks = tuple(
        prepare_decode_params(fill(jax.random.key(i))) for i in range(model.config.layers)
    )
    rest = {name: value for name, value in shapes.items() if name != "blocks"}
    rest = jax.tree.map(
        lambda leaf: (0.02 * jax.random.normal(jax.random.key(1), leaf.shape)).astype(dtype), rest
    )
    return rest | {"blocks": blocks}


def bytes_a_step(model: Transformer, codes: int, batch: int, context: int) -> int:
    """Returns the bytes of weights, head and caches that one token for each row has to read.

    An entry has as many as the arithmetic's type. In 8 bits, one of a kernel or a cache has one,
    and each head has a scale of four for the key and for the value of a token.
    """
    config, size = model.config, jnp.dtype(model.policy.compute).itemsize
    kernels = config.layers * (4 + 2 * config.mlp_ratio) * config.width**2
    head = codes * config.width
    entry = 1 if model.policy.int8_kernels else size
    token = config.width * size
    if model.programs.int8_cache:
        token = config.width + 4 * config.heads
    return kernels * entry + head * size + batch * 2 * config.layers * context * token


def prefilled(
    model: Transformer, params: dict, batch: int, context: int, room: int
) -> tuple[dict, Sequences, dict[str, Any]]:
    """Returns the parameters, the sequences and the options that `decode` goes on from.

    The rows have `context` random tokens of the vocabulary's codes, and room for `room` more. Work
    that is done once for an image is done: it is not part of a step.
    """
    assert model.vocabulary is not None
    codes = model.vocabulary.codes
    tokens = np.random.default_rng(0).integers(0, codes, (batch, context)).astype(np.int32)
    keys, sizes = sample_keys(0, ["a"] * batch, range(batch)), {"model": model, "first": 0}
    valid = np.ones(tokens.shape, bool)
    sequences = prefill(params, tokens, valid, keys, count=room, **sizes)
    parts = matvec_parts(batch, model.programs.platform)
    params = jax.jit(split_for_cores, static_argnums=1)(params, parts)
    return params, sequences, {"last": codes, **sizes}


def room_of_sampling(model: Transformer, context: int, count: int) -> int:
    """Returns the free slots of the smallest cache of sampling with room for `count` tokens."""
    ends = np.cumsum(segment_lengths(model, PROMPT, CODES)) + PROMPT
    return int(min(end for end in ends if end >= context + count)) - context


def measure(
    model: Transformer, params: dict, batch: int, context: int, trace: str | None = None
) -> dict[str, Any]:
    """Returns the seconds for one step of `batch` rows that already have `context` tokens.

    The cache has as many slots as it has in sampling at this context.
    """
    # There is room for a call to warm up and one that is timed.
    room = room_of_sampling(model, context, 2 * COUNT)
    params, sequences, options = prefilled(model, params, batch, context, room)
    settings = row_settings([SamplingConfig()] * batch)
    call = {"settings": settings, "count": COUNT, **options}
    sequences, _ = jax.block_until_ready(decode(params, sequences, **call))
    times = []
    for _ in range(max(1, min(5, room // COUNT - 1))):
        began = time.perf_counter()
        sequences, _ = jax.block_until_ready(decode(params, sequences, **call))
        times.append((time.perf_counter() - began) / COUNT)
        if trace:
            with jax.profiler.trace(trace):
                sequences, _ = jax.block_until_ready(decode(params, sequences, **call))
            break
    return {"batch": batch, "context": context, "seconds": min(times), "all": times}


def main() -> None:
    """Measures, prints the table, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="tutorial")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--batches", default="1,4,16")
    parser.add_argument("--contexts", default="64,1000")
    parser.add_argument("--layers", type=int, help="of the model; its own where not given")
    parser.add_argument("--trace", action="store_true", help="print the longest kernels")
    given = parser.parse_args()
    contexts, most = list(map(int, given.contexts.split(","))), POSITIONS - 2 * COUNT
    if max(contexts) > most:
        parser.error(f"--contexts {given.contexts}: expected at most {most} tokens")
    config = MODELS[given.model]
    config = dataclasses.replace(config, dropout=0.0, layers=given.layers or config.layers)
    vocabulary = Vocabulary()
    model = Transformer(
        config, vocabulary.size, POSITIONS, policy(given.precision), vocabulary=vocabulary
    )
    params = random_params(model)
    device, rows = jax.devices()[0].device_kind, []
    on_cpu = jax.default_backend() == "cpu"
    bandwidth = measured_bandwidth() if on_cpu else measured_bandwidth(2048, chained=20)
    print(
        f"{given.model} ({config.layers} layers) in {given.precision},"
        f" {device}, jax {jax.__version__}, {bandwidth / 1e9:.4g} GB/s",
        flush=True,
    )
    for context in contexts:
        for batch in map(int, given.batches.split(",")):
            with tempfile.TemporaryDirectory() as trace:
                row = measure(model, params, batch, context, trace if given.trace else None)
                longest = list(kernels(trace))[:30] if given.trace else []
            need = bytes_a_step(model, vocabulary.codes, batch, context)
            seconds = row["seconds"]
            row |= {
                "tokens_per_second": batch / seconds,
                "bytes": need,
                "share_of_limit": need / bandwidth / seconds,
                "seconds_per_image": CODES * seconds / batch,
            }
            rows.append(row)
            print(
                f"  batch {batch:3}, context {context:5}: {batch / seconds:8.1f} tokens/s,"
                f" {seconds * 1e3:8.2f} ms a step, {row['share_of_limit']:6.1%} of the limit,"
                f" {row['seconds_per_image']:.2f} s an image",
                flush=True,
            )
            for name, count, milliseconds in longest:
                print(f"    {milliseconds:9.3f} ms {count:6} x {name[:120]}", flush=True)
    result = {"device": device, "jax": jax.__version__, "bandwidth": bandwidth}
    result |= {"model": given.model, "layers": config.layers, "precision": given.precision}
    write_json(RESULT, result | {"rows": rows})


if __name__ == "__main__":
    main()
