"""Upper bounds for the counts that users give, so that no request exhausts the memory."""

import numbers

from absl.flags import FlagHolder

from cogview_jax.runtime.errors import InputError

#: Images of one job or call. The list of so many takes about a gigabyte of memory. The largest
#: evaluation of the paper, 60 candidates for each of 30,000 captions, needs two such jobs.
MOST_IMAGES = 1_000_000
#: Rows of one batch. A 64th of them is as fast (docs/benchmarks.md), and even the logits and caches
#: of a small model take gigabytes for so many.
MOST_ROWS = 4096
#: Candidates of a window, and rounds of back-projection. Far fewer already gain all there is.
MOST_CANDIDATES, MOST_ROUNDS = 1024, 1024
#: Pixels of a blur before images are compared: beyond it an image of any size is one grey.
MOST_RADIUS = 256
#: Images of each split in a benchmark, with all candidates. They give a share to within 0.2%.
MOST_PROMPTS = 100_000


def need_flag(flag: FlagHolder, most: int, least: int = 1) -> None:
    """Checks the value of a flag with `need_count`, if the flag was given."""
    if flag.value is not None:
        need_count(f"--{flag.name}", flag.value, most, least)


def need_seed(seed: int) -> None:
    """Raises InputError for a seed that is no whole number of at most 32 bits.

    jax would drop the rest of the bits, and sample as another seed does.
    """
    if not isinstance(seed, numbers.Integral) or not 0 <= seed < 2**32:
        raise InputError(f"seed {seed}: expected 0 to {2**32 - 1}")


def need_count(name: str, value: int, most: int, least: int = 1) -> None:
    """Raises InputError if the count `name` is no whole number, below `least` or above `most`."""
    if not isinstance(value, numbers.Integral):
        raise InputError(f"{name} {value!r}: expected a whole number")
    if value < least:
        raise InputError(f"{name} {value}: expected at least {least}")
    if value > most:
        raise InputError(f"{name} {value}: expected at most {most}")
