"""`python -m cogview_jax.prepare`, which is `cogview prepare`."""

from cogview_jax.commands import prepare
from cogview_jax.runtime.command_line import run

if __name__ == "__main__":
    run(prepare)
