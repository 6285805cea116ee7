"""What the embeddings of image codes start from, where a codec is known."""

import numpy as np
from jaxtyping import Array, Float


def code_embeddings(
    vectors: Float[Array | np.ndarray, "V C"], width: int, std: float, seed: int
) -> Float[np.ndarray, "V width"]:
    """A codec's vectors as rows of an embedding table: [V, C] -> float32 [V, width].

    Codes that look alike start alike: what is learned of one holds for its neighbours, the rare
    ones among them. Singular values are replaced by their square roots, so that the dominant
    directions (colour) do not swamp the others (shape). A random rotation then spreads the result
    over all of the width; where the vectors have more numbers, it is a random projection.

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
