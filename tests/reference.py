"""The slow, obvious form of the fast computations: loops, float64, nothing clever.

One sequence or one image at a time, so there is no batch, no padding and no cache to get wrong.
Parameters are the trees of the modules that are restated.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np


def random_like(shapes: Any, seed: int, std: float = 0.3) -> Any:
    """Parameters of these shapes, none at 0 or 1, so that one left out or swapped shows."""
    generator = np.random.default_rng(seed)

    def fill(path: tuple, leaf: Any) -> np.ndarray:
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return (centre + std * generator.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def float64(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


# ---- transformer: T positions, D width, V vocabulary


def layer_norm(x: np.ndarray, params: Any, epsilon: float, relax: bool) -> np.ndarray:
    result = np.empty_like(x)
    for t, row in enumerate(x):
        if relax:
            row = row / np.abs(row).max()
        variance = np.mean((row - row.mean()) ** 2)
        normal = (row - row.mean()) / math.sqrt(variance + epsilon)
        result[t] = normal * params["scale"] + params["bias"]
    return result


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def attention_weights(queries: np.ndarray, keys: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Plain softmax attention of one head: [T, H], [S, H], bool [T, S] -> [T, S]."""
    result = np.zeros(mask.shape)
    for t, query in enumerate(queries):
        result[t, mask[t]] = softmax(keys[mask[t]] @ query / math.sqrt(len(query)))
    return result


def each_head(
    x: np.ndarray, params: Any, heads: int, mask: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The weights [T, T] of each head, and what it has of the values [T, H]."""
    projected = np.tensordot(x, params["qkv"]["kernel"], 1) + params["qkv"]["bias"]
    if mask is None:
        mask = np.array([[s <= t for s in range(len(x))] for t in range(len(x))])
    for columns in np.split(np.arange(x.shape[1]), heads):
        queries, keys, values = (projected[:, i, columns] for i in range(3))
        yield attention_weights(queries, keys, mask), values


def attention(x: np.ndarray, params: Any, heads: int, mask: np.ndarray | None = None) -> np.ndarray:
    mixed = [weights @ values for weights, values in each_head(x, params, heads, mask)]
    return np.concatenate(mixed, axis=1) @ params["out"]["kernel"] + params["out"]["bias"]


def mlp(x: np.ndarray, params: Any) -> np.ndarray:
    x = x @ params["up"]["kernel"] + params["up"]["bias"]
    x = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x @ params["down"]["kernel"] + params["down"]["bias"]


def block(x: np.ndarray, params: Any, config: Any, mask: np.ndarray | None = None) -> np.ndarray:
    """One layer, [T, D] -> [T, D]; without `sandwich_ln` it is Pre-LN."""

    def norm(y: np.ndarray, name: str) -> np.ndarray:
        return layer_norm(y, params[name], config.epsilon, config.pb_relax_norm)

    y = attention(norm(x, "attention_in"), params["attention"], config.heads, mask)
    x = x + (norm(y, "attention_out") if config.sandwich_ln else y)
    y = mlp(norm(x, "mlp_in"), params["mlp"])
    return x + (norm(y, "mlp_out") if config.sandwich_ln else y)


def transformer(
    params: Any,
    config: Any,
    tokens: Sequence[int],
    positions: Sequence[int] | None = None,
    masks: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Logits [T, V] of one sequence; positions count from 0 unless given, masks are causal."""
    params, tokens = float64(params), np.asarray(tokens)
    positions = np.arange(len(tokens)) if positions is None else np.asarray(positions)
    x = params["word_embedding"][tokens] + params["position_embedding"][positions]
    for i in range(config.layers):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"]["block"])
        x = block(x, layer, config, None if masks is None else masks[i])
    x = layer_norm(x, params["final_norm"], config.epsilon, config.pb_relax_norm)
    return x @ params["word_embedding"].T


def layer_attention(
    params: Any, config: Any, tokens: np.ndarray, positions: np.ndarray
) -> np.ndarray:
    """The attention weights of one sequence in every layer and head, [L, N, T, T]."""
    params, found = float64(params), []
    x = params["word_embedding"][tokens] + params["position_embedding"][positions]
    for i in range(config.layers):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"]["block"])
        y = layer_norm(x, layer["attention_in"], config.epsilon, config.pb_relax_norm)
        found.append([weights for weights, _ in each_head(y, layer["attention"], config.heads)])
        x = block(x, layer, config)
    return np.array(found)


# ---- sampling


def keep_top_k(logits: Sequence[float], k: int) -> np.ndarray:
    """What is below the k-th largest becomes -inf; 0 keeps all."""
    kth = sorted(logits, reverse=True)[min(k, len(logits)) - 1] if k else -math.inf
    return np.array([x if x >= kth else -math.inf for x in logits])


def keep_top_p(logits: Sequence[float], p: float) -> np.ndarray:
    """Keeps the likeliest until they reach p together, and what ties with the last of them."""
    total = sum(math.exp(x - max(logits)) for x in logits)
    reached, last = 0.0, math.inf
    for x in sorted(logits, reverse=True):
        if reached >= p:
            break
        reached, last = reached + math.exp(x - max(logits)) / total, x
    return np.array([x if x >= last else -math.inf for x in logits])


def filtered(logits: np.ndarray, config: Any) -> np.ndarray:
    """The logits that a token is sampled from."""
    logits = np.asarray(logits, np.float64) / config.temperature
    return keep_top_p(keep_top_k(logits, config.top_k), config.top_p)


def generate(
    params: Any,
    model_config: Any,
    prompt: Sequence[int],
    key: jax.Array,
    count: int,
    allowed: tuple[int, int],
    config: Any,
    positions: Sequence[int] | None = None,
) -> list[int]:
    """`count` tokens, a pass over the whole prefix for each; token i by `key` folded with i.

    positions: of prompt and sampled tokens, where they do not just count.
    """
    first, last = allowed
    row = list(prompt)
    for i in range(count):
        places = None if positions is None else positions[: len(row)]
        logits = transformer(params, model_config, row, places)[-1, first:last]
        if config.temperature == 0:
            sampled = np.argmax(logits)
        else:
            logits = filtered(logits, config).astype(np.float32)
            sampled = jax.random.categorical(jax.random.fold_in(key, i), logits)
        row.append(first + int(sampled))
    return row[len(prompt) :]


# ---- image tokenizer: images [h, w, c], codes [K, D]


def convolution(x: np.ndarray, params: Any, stride: int = 1) -> np.ndarray:
    """Each output gathers its window; kernel [taps, taps, c_in, c_out]."""
    kernel, bias = params["kernel"], params["bias"]
    taps = len(kernel)
    edge = (taps - stride + 1) // 2
    padded = np.pad(x, ((edge, edge), (edge, edge), (0, 0)))
    result = np.zeros((x.shape[0] // stride, x.shape[1] // stride, kernel.shape[-1]))
    for r, c in np.ndindex(result.shape[:2]):
        window = padded[r * stride : r * stride + taps, c * stride : c * stride + taps]
        result[r, c] = np.tensordot(window, kernel, 3) + bias
    return result


def transposed_convolution(x: np.ndarray, params: Any) -> np.ndarray:
    """4x4, stride 2: each input is scattered over its window; the edge of width 1 is cut off."""
    kernel, bias = params["kernel"], params["bias"]
    result = np.zeros((2 * x.shape[0] + 2, 2 * x.shape[1] + 2, kernel.shape[-1]))
    for r, c in np.ndindex(x.shape[:2]):
        result[2 * r : 2 * r + 4, 2 * c : 2 * c + 4] += np.tensordot(x[r, c], kernel, (0, 2))
    return result[1:-1, 1:-1] + bias


def residual(x: np.ndarray, params: Any) -> np.ndarray:
    y = convolution(np.maximum(x, 0), params["wide"])
    return x + convolution(np.maximum(y, 0), params["narrow"])


def encode(params: Any, config: Any, pixels: np.ndarray) -> np.ndarray:
    """Normalised pixels [h, w, 3] -> encoder outputs [rows, columns, D]."""
    x = pixels
    for i in range(config.levels):
        x = np.maximum(convolution(x, params[f"encoder_convs_{i}"], stride=2), 0)
    for i in range(config.residual_blocks):
        x = residual(x, params[f"encoder_blocks_{i}"])
    return convolution(x, params["encoder_out"])


def decode(params: Any, config: Any, vectors: np.ndarray) -> np.ndarray:
    """Code vectors [rows, columns, D] -> normalised pixels [h, w, 3]."""
    x = vectors
    if config.residual_blocks:
        x = convolution(x, params["decoder_in"])
        for i in range(config.residual_blocks):
            x = residual(x, params[f"decoder_blocks_{i}"])
        x = np.maximum(x, 0)
    for i in range(config.levels):
        x = np.maximum(transposed_convolution(x, params[f"decoder_convs_{i}"]), 0)
    return convolution(x, params["decoder_out"])


def nearest(codes: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The id of the nearest code of each vector: [K, D], [N, D] -> [N]."""
    ids = []
    for vector in vectors:
        distances = [sum((a - b) ** 2 for a, b in zip(code, vector, strict=True)) for code in codes]
        ids.append(distances.index(min(distances)))
    return np.array(ids)


def moving_average_update(
    counts: np.ndarray,
    sums: np.ndarray,
    vectors: np.ndarray,
    ids: Sequence[int],
    decay: float,
    epsilon: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The codebook after a batch, vector by vector: codes, counts, sums."""
    counts, sums = decay * np.asarray(counts, float), decay * np.asarray(sums, float)
    for vector, i in zip(vectors, ids, strict=True):
        counts[i] += 1 - decay
        sums[i] += (1 - decay) * vector
    total = counts.sum()
    codes = np.empty_like(sums)
    for k, count in enumerate(counts):
        smoothed = (count + epsilon) / (total + len(counts) * epsilon) * total
        codes[k] = sums[k] / smoothed
    return codes, counts, sums


# ---- sparse attention


def sparse_mask(length: int, pivots: Sequence[int], window: int, blocks: int) -> np.ndarray:
    """Who sees whom, bool [T, T]: the last blocks up to oneself, and pivots before those."""
    mask = np.zeros((length, length), bool)
    for query in range(length):
        oldest = query // window - (blocks - 1)
        for key in range(query + 1):
            mask[query, key] = key // window >= oldest or key in pivots
    return mask
