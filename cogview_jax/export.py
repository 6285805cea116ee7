"""`python -m cogview_jax.export`, which is `cogview export`."""

from cogview_jax.commands import export
from cogview_jax.runtime.command_line import run

if __name__ == "__main__":
    run(export)
