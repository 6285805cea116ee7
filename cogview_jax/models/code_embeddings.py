"""What the embeddings of image codes start from, where a codec is known."""

import numpy as np
from numpy.typing import ArrayLike


def code_embeddings(vectors: ArrayLike, width: int, std: float, seed: int) -> np.ndarray:
    """A codec's vectors as rows of an embedding table: [V, C] -> float32 [V, width].

    Codes that look alike start alike: what is learned of one holds for its neighbours, the rare
    ones among them. Of the vectors' principal directions each keeps the square root of its spread,
    or the few in which codes differ most, their colours, would drown all others, their outlines.
    The result is turned at random, so that all of the width takes part, or cast onto a random plane
    of it where the vectors have more numbers.

    Args:
        vectors: of the codebook, one a code.
        width: of the transformer.
        std: of all numbers of the result, that of the other embeddings.
        seed: of the turn.
    """
    vectors = np.asarray(vectors, np.float64)
    places, spreads, directions = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    # With the directions back in their place it does not matter which way each of them points.
    evened = (places * np.sqrt(spreads)) @ directions
    depth = vectors.shape[1]
    normal = np.random.default_rng(seed).standard_normal((max(depth, width), min(depth, width)))
    turn, _ = np.linalg.qr(normal)
    rows = evened @ (turn.T if depth <= width else turn)
    # Vectors that are all the same have no spread.
    return (rows * (std / (rows.std() or 1.0))).astype(np.float32)
