"""Turns captioned images into a token store that training reads.

Trains the text tokenizer unless the config names one, encodes every image with the codec of
`data.image_tokenizer` and every caption with the text tokenizer, and writes WORKDIR/tokens (or
`data.store`). Records that cannot be used are listed in skipped.jsonl there. Interrupted, the same
command continues; finished, it does nothing.

  python -m cogview_jax.prepare --config configs/tutorial.py --workdir runs/tutorial \\
      --config.data.from=runs/codec

Started several times, on one machine or on many that share the workdir, the processes divide the
work, and the store is the same. Any of them may be killed, and others may join. With --engine=ray
the actors of a Ray cluster do the same for one command. With a --workdir in a bucket one process
does it all.

`data.from` names the workdir of a run whose images and image tokenizer are used. `train` with the
same --workdir finds what was given here.
"""

from absl import flags

from cogview_jax.commands.experiment_flag import experiment_flag
from cogview_jax.runtime import flag_kinds
from cogview_jax.runtime.config_flag import given
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.processes import leave_when_asked

CONFIG = experiment_flag()
ENGINE = flags.DEFINE_enum(
    "engine",
    "local",
    ["local", "ray"],
    "who encodes: this process, with all that run the same command; or the actors of a Ray cluster",
)
WORKDIR = flag_kinds.address_flag(
    "workdir",
    "the folder of the run, or its address in a bucket: gs://BUCKET/DIR, s3://BUCKET/DIR",
    required=True,
)


def main() -> None:
    """Flags in, one job."""
    from cogview_jax.tasks import preparation
    from cogview_jax.tasks.earlier_run import resolve
    from cogview_jax.tasks.experiment import TransformerExperiment
    from cogview_jax.tasks.remote_workdir import described_workdir, shared_workdir

    experiment, _ = resolve(CONFIG.value, given(), described_workdir(WORKDIR.value))
    if not isinstance(experiment, TransformerExperiment):
        raise InputError("this config trains an image tokenizer, which needs no token store")
    leave_when_asked()
    with shared_workdir(WORKDIR.value) as workdir:
        preparation.prepare_run(experiment, workdir, ENGINE.value)
