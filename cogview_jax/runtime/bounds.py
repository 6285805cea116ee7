"""Upper bounds of counts that users give, so that no request exhausts the memory."""

from absl.flags import FlagHolder

from cogview_jax.runtime.errors import InputError

#: Images of one job or call: what is listed of so many takes about a gigabyte of memory. The
#: paper's largest evaluation is 60 candidates for each of 30,000 captions, two such jobs.
MOST_IMAGES = 1_000_000
#: Rows of one batch: 64 times the number from which on more gain little (docs/benchmarks.md).
#: Logits and caches of so many are gigabytes even of a small model.
MOST_ROWS = 4096
#: Candidates of a window, and rounds of back-projection: far more than gain anything.
MOST_CANDIDATES, MOST_ROUNDS = 1024, 1024
#: Images of each split at most, candidates counted: by then a share is known to within .2%.
MOST_PROMPTS = 100_000


def need_flag(flag: FlagHolder, most: int, least: int = 1) -> None:
    """`need_count` of a flag of a command, if it was given."""
    if flag.value is not None:
        need_count(f"--{flag.name}", flag.value, most, least)


def need_count(name: str, value: int, most: int, least: int = 1) -> None:
    """InputError for a number below `least` or above `most`, by its name."""
    if value < least:
        raise InputError(f"{name} {value}: expected at least {least}")
    if value > most:
        raise InputError(f"{name} {value}: expected at most {most}")
