"""Runs the stability experiment of the paper (Figure 4b): five variants, figures and a table.

  make stability

The command reads the token store WORKDIR/tokens and trains the variants of configs/stability.py one
after the other. It writes layers.png, growth.png, losses.png and results.json into OUT, and the
table into OUT/README.md. The record of each variant is saved as WORKDIR/VARIANT.npz, and a variant
that has a record is not run again.
"""

import os
import sys
from pathlib import Path

from absl import flags

from cogview_jax.runtime import command_line

WORKDIR = flags.DEFINE_string("workdir", "runs/stability", "the folder of the runs")
OUT = flags.DEFINE_string("out", "docs/stability", "the folder of the figures and the table")
WIDE = flags.DEFINE_bool("wide", False, "the paper's width of 1024, for a GPU")
CONFIG = Path(__file__).parents[2] / "configs" / "stability.py"
NAMES = ("pre_ln", "sandwich_only", "plain_attention", "pb_relax_only", "both")


def main() -> None:
    """Reads the flags and starts the runs."""
    # Values between two operations then have no more than float16's precision on any device. XLA
    # reads the flag when jax is imported.
    flag = "--xla_allow_excess_precision=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    from bench.stability.runs import run
    from cogview_jax.runtime.config_flag import load_config
    from cogview_jax.tasks.experiment import read_experiment

    names = [f"{name}_1024" for name in NAMES] if WIDE.value else NAMES
    experiments = {name: read_experiment(load_config(f"{CONFIG}:{name}")) for name in names}
    run(experiments, Path(WORKDIR.value), Path(OUT.value))


if __name__ == "__main__":
    command_line.run(sys.modules[__name__])
