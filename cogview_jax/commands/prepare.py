"""Turns captioned images into a token store that training reads.

Trains the text tokenizer unless the config names one, encodes every image with the codec of
`data.image_tokenizer` and every caption with the text tokenizer, and writes WORKDIR/tokens (or
`data.store`). Records that cannot be used are listed in skipped.jsonl there. Interrupted, the same
command continues; finished, it does nothing.

  python -m cogview_jax.prepare --config configs/tutorial.py --workdir runs/tutorial \\
      --config.data.source.path=my_images --config.data.image_tokenizer=runs/codec/bundle
"""

from cogview_jax.commands.experiment_flag import experiment_flag
from cogview_jax.runtime import command_line
from cogview_jax.runtime.errors import InputError

CONFIG = experiment_flag()
WORKDIR = command_line.path_flag("workdir", "the folder of the run", required=True)


def main() -> None:
    """Flags in, one job."""
    from cogview_jax.tasks import preparation
    from cogview_jax.tasks.experiment import TransformerExperiment, read_experiment
    from cogview_jax.tasks.workdir import Workdir

    experiment = read_experiment(CONFIG.value)
    if not isinstance(experiment, TransformerExperiment):
        raise InputError("this config trains an image tokenizer, which needs no token store")
    path = preparation.store_path(experiment.data, Workdir(WORKDIR.value))
    preparation.prepare(experiment, path)
