"""`python -m cogview_jax.serve`, which is `cogview serve`."""

from cogview_jax.commands import serve
from cogview_jax.runtime.command_line import run

if __name__ == "__main__":
    run(serve)
