"""`python -m cogview_jax.train`, which is `cogview train`."""

from cogview_jax.commands import train
from cogview_jax.runtime.command_line import run

if __name__ == "__main__":
    run(train)
