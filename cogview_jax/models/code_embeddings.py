"""Initial embeddings of image codes, made from the codebook of the image tokenizer."""

import numpy as np
from jaxtyping import Array, Float


def code_embeddings(
    vectors: Float[Array | np.ndarray, "V C"], width: int, std: float, seed: int
) -> Float[np.ndarray, "V {width}"]:
    """Turns the vectors of a codebook into float32 rows of an embedding table.

    Codes that look alike start with similar embeddings, so what training learns about one code also
    holds for similar ones, rare codes among them. The singular values are replaced by their square
    roots, so that the dominant directions (colour) do not hide the others (shape). A random
    rotation then spreads the result over the whole width. Where C is larger than the width, it is a
    random projection.

    Args:
        vectors: the codebook, one vector for each code.
        width: the width of the transformer.
        std: the standard deviation of all numbers of the result, that of the other embeddings.
        seed: the seed of the random rotation.
    """
    vectors = np.asarray(vectors, np.float64)
    left, singular, right = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    # The product does not depend on the signs of the singular vectors, which are arbitrary.
    evened = (left * np.sqrt(singular)) @ right
    depth = vectors.shape[1]
    normal = np.random.default_rng(seed).standard_normal((max(depth, width), min(depth, width)))
    rotation, _ = np.linalg.qr(normal)
    rows = evened @ (rotation.T if depth <= width else rotation)
    # If all vectors are equal, the rows are 0 and have no standard deviation to divide by.
    return (rows * (std / (rows.std() or 1.0))).astype(np.float32)
