"""`python -m cogview_jax.sample`, which is `cogview sample`."""

from cogview_jax.commands import sample
from cogview_jax.runtime.command_line import run

if __name__ == "__main__":
    run(sample)
