"""`python -m cogview_jax.convert`, which is `cogview convert`."""

from cogview_jax.commands import convert
from cogview_jax.runtime.command_line import run

if __name__ == "__main__":
    run(convert)
