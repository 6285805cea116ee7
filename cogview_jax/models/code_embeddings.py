"""What the embeddings of image codes start from, where a codec is known."""

import numpy as np
from numpy.typing import ArrayLike


def code_embeddings(vectors: ArrayLike, width: int, deviation: float, seed: int) -> np.ndarray:
    """A codec's vectors as rows of an embedding table: [V, C] -> float32 [V, width].

    Codes that look alike start alike, as seen from the origin that all have in common: what is
    learned of one holds for its neighbours, the rare ones among them. The vectors are taken from
    their mean and turned by a random matrix, which keeps angles and ratios of lengths up to some
    1 / sqrt(width) (Johnson and Lindenstrauss 1984).

    Args:
        vectors: of the codebook, one a code.
        width: of the transformer.
        deviation: of all numbers of the result, that of the other embeddings.
        seed: of the matrix.
    """
    vectors = np.asarray(vectors, np.float64)
    turn = np.random.default_rng(seed).standard_normal((vectors.shape[1], width))
    rows = (vectors - vectors.mean(axis=0)) @ turn
    # Vectors that are all the same have no spread.
    return (rows * (deviation / (rows.std() or 1.0))).astype(np.float32)
