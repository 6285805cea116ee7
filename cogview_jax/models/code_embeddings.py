"""What the embeddings of image codes start from, where a codec is known."""

import numpy as np
from numpy.typing import ArrayLike


def code_embeddings(vectors: ArrayLike, width: int, deviation: float, seed: int) -> np.ndarray:
    """A codec's vectors as rows of an embedding table: [V, C] -> float32 [V, width].

    Codes that look alike start alike: what is learned of one holds for its neighbours, the rare
    ones among them. Of the vectors' principal directions each keeps the square root of its spread,
    or the few in which codes differ most, their colours, would drown all others, their outlines.
    The result is turned at random, so that all of the width takes part.

    Args:
        vectors: of the codebook, one a code.
        width: of the transformer; of more principal directions the first are taken.
        deviation: of all numbers of the result, that of the other embeddings.
        seed: of the turn.
    """
    vectors = np.asarray(vectors, np.float64)
    places, spreads, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    kept = min(len(spreads), width)
    normal = np.random.default_rng(seed).standard_normal((width, kept))
    turn, _ = np.linalg.qr(normal)
    rows = (places * np.sqrt(spreads))[:, :kept] @ turn.T
    # Vectors that are all the same have no spread.
    return (rows * (deviation / (rows.std() or 1.0))).astype(np.float32)
