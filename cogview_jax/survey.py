"""`python -m cogview_jax.survey`, which is `cogview survey`."""

from cogview_jax.commands import survey
from cogview_jax.runtime.command_line import run

if __name__ == "__main__":
    run(survey)
