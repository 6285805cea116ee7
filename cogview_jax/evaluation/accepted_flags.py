"""Which flags of `evaluate` a benchmark takes: one that would do nothing is refused.

A benchmark names its flags as TAKES, made of the groups below, and what it may measure by networks
as FEATURES, names of `--features`. One that names neither has those of `DEFAULT` and every network.
"""

from collections.abc import Iterable

from cogview_jax.evaluation.benchmark import Benchmark
from cogview_jax.evaluation.feature_networks import FEATURE_NETWORKS
from cogview_jax.runtime.errors import InputError

#: Those that sample, and those that choose the best of several candidates.
SAMPLING = (
    *("seed", "precision", "temperature", "top_k", "top_p", "guidance", "parallel_window"),
    "batch_size",
)
CHOICE = ("rerank_with", "candidates")
#: Captioned images, and prompts of one's own.
CAPTIONED, PROMPTS = ("real", "captions"), ("prompt", "prompts")
#: What is measured of two sets of images, but for the radii of blur, and how FID-k blurs.
DISTANCES = ("resize", "fid_infinity", "precision_recall", "save_statistics")
BLUR = ("blur_kernel", "blur_sets")
#: The networks of FID, IS and KID.
FID_NETWORKS = tuple(FEATURE_NETWORKS)

DEFAULT = ("num_prompts", *SAMPLING, *CHOICE, "resize")
#: All flags that some benchmark takes.
OF_BENCHMARKS = (
    *("num_prompts", *SAMPLING, *CHOICE, *CAPTIONED, "generated", *PROMPTS),
    *("features", *DISTANCES, "blur", *BLUR, "study", "system"),
)
_NETWORKS = (*FID_NETWORKS, "lpips", "clip")


def check_flags(benchmark: Benchmark, given: Iterable[str], features: Iterable[str]) -> None:
    """Refuses flags and networks that a benchmark does not use.

    Args:
        benchmark: its module.
        given: names of flags on the command line; those that are not of benchmarks pass.
        features: the names that `--features` has.

    Raises:
        InputError: one line with the benchmark, what it does not take, and what it takes.
    """
    name = benchmark.__name__.rpartition(".")[2]
    networks = getattr(benchmark, "FEATURES", _NETWORKS)
    takes = (*getattr(benchmark, "TAKES", DEFAULT), *(["features"] if networks else []))
    if foreign := [flag for flag in given if flag in OF_BENCHMARKS and flag not in takes]:
        raise InputError(
            f"--benchmark {name} takes no {_flags(foreign)}: it takes"
            f" {_flags(flag for flag in OF_BENCHMARKS if flag in takes)}"
        )
    if unknown := [network for network in features if network not in networks]:
        raise InputError(
            f"--benchmark {name} measures nothing by --features {', '.join(unknown)}: it takes"
            f" {', '.join(networks)}"
        )


def _flags(names: Iterable[str]) -> str:
    return ", ".join(f"--{name}" for name in names)
