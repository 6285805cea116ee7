"""`python -m cogview_jax.evaluate`, which is `cogview evaluate`."""

from cogview_jax.commands import evaluate
from cogview_jax.runtime.command_line import run

if __name__ == "__main__":
    run(evaluate)
