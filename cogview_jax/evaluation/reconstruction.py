"""How an image tokenizer's reconstructions differ from the images, and how it uses its codes."""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, UInt8

from cogview_jax.evaluation.image_quality import psnr, squared_error, ssim
from cogview_jax.interop.feature_weights import read_lpips
from cogview_jax.models.networks.lpips import LpipsWeights, lpips
from cogview_jax.runtime.files import sha256_file

#: The most that an image counts in a mean PSNR, in dB: one without any error has no finite one.
MOST_PSNR = 100.0


def open_lpips(path: str | None) -> tuple[LpipsWeights | None, dict[str, str]]:
    """The weights of LPIPS in a file, and what a report says of them; None and nothing of None.

    Raises:
        InputError: the file is none of LPIPS, see `read_lpips`.
    """
    if path is None:
        return None, {}
    weights = read_lpips(path)
    return weights, {"network": weights.network, "sha256": sha256_file(path)}


def pair_metrics(
    weights: LpipsWeights | None,
    a: UInt8[Array | np.ndarray, "b h w 3"],
    b: UInt8[Array | np.ndarray, "b h w 3"],
) -> dict[str, Float[jax.Array, " b"]]:
    """What is measured of each pair of images, by name: float32 [b].

    error is the mean squared error of 8-bit pixels; ssim as `image_quality` has it; lpips where
    there are `weights`.
    """
    found = {"error": squared_error(a, b), "ssim": ssim(a, b)}
    if weights is None:
        return found
    x, y = (jnp.asarray(image).astype(jnp.float32) / 127.5 - 1 for image in (a, b))
    return found | {"lpips": lpips(weights, x, y)}


def image_values(
    metrics: Mapping[str, Float[np.ndarray, " n"]],
) -> dict[str, Float64[np.ndarray, " n"]]:
    """What `pair_metrics` gives, in the units of reports, float64.

    l2 is the mean squared error of pixels in [0, 1], psnr is in dB and at most MOST_PSNR.
    """
    values = {name: np.asarray(array, np.float64) for name, array in metrics.items()}
    errors = values.pop("error")
    return {"l2": errors / 255**2, "psnr": np.minimum(psnr(errors), MOST_PSNR)} | values


def code_use(codes: Iterable[Int[np.ndarray, "..."]], codebook: int) -> dict[str, float]:
    """Which of the codes are used at all, and how evenly.

    Args:
        codes: of the images, some at a time.
        codebook: how many codes there are.

    Returns:
        usage, the share of the codes that occur; and perplexity, exp of the entropy of their
        frequencies.
    """
    uses = np.zeros(codebook, np.int64)
    for some in codes:
        uses += np.bincount(some.reshape(-1), minlength=codebook)
    return use_of(uses)


def use_of(uses: Int[np.ndarray, " k"] | Float[np.ndarray, " k"]) -> dict[str, float]:
    """usage and perplexity of how often each code occurs."""
    share = uses[uses > 0] / uses.sum()
    entropy = -np.sum(share * np.log(share))
    return {"usage": float(np.mean(uses > 0)), "perplexity": float(np.exp(entropy))}
