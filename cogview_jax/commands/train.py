"""Trains what a config describes: an image tokenizer or a transformer.

A run lives in --workdir: config.json, checkpoints/, metrics/ (TensorBoard, and metrics.jsonl for
programs), samples/, and on completion bundle/. The same command again continues an interrupted run
exactly where its last checkpoint stands, on any mesh and number of hosts, and does nothing for a
finished one.

  python -m cogview_jax.train --config configs/demo_codec.py --workdir runs/codec

A config says what it changes of the defaults, and --config.KEY=VALUE changes any setting, named by
the config or not; --print_config shows them all.

On several hosts every process runs the same command (see launch/README.md). SIGTERM to any of them
makes all of them save and exit with status 75. With --dry_run nothing is trained and no data is
needed: the step is compiled, for as many devices as the mesh asks for, and what it would take is
printed.

  python -m cogview_jax.train --config configs/cogview_4b.py --dry_run --devices 64 \\
      --accelerator H100
"""

from absl import flags

from cogview_jax.commands.experiment_flag import experiment_flag
from cogview_jax.runtime import command_line, flag_kinds
from cogview_jax.runtime.config import as_settings
from cogview_jax.runtime.config_flag import given, settings_page
from cogview_jax.runtime.processes import distributed_flags

CONFIG = experiment_flag()
WORKDIR = flag_kinds.address_flag(
    "workdir",
    "the folder of the run, which all hosts share; or its address in a bucket: gs://BUCKET/DIR,"
    " s3://BUCKET/DIR",
)
START = distributed_flags()
STALL_TIMEOUT = flags.DEFINE_float(
    "stall_timeout",
    1800,
    "seconds without a finished step after which the run ends; 0: never",
    lower_bound=0,
    upper_bound=1_000_000,  # as long as timers of the system count
)
PRINT_CONFIG = flags.DEFINE_boolean(
    "print_config", False, "print every setting, with where its value comes from, and end"
)
DRY_RUN = flags.DEFINE_boolean("dry_run", False, "compile for the mesh and say what it takes")
DEVICES = flags.DEFINE_integer("devices", None, "of a dry run: how many devices to suppose")
ACCELERATOR = flags.DEFINE_string("accelerator", "", "of a dry run: what they are, such as H100")


def main() -> int | None:
    """Flags in, one job."""
    from cogview_jax.tasks.earlier_run import resolve
    from cogview_jax.tasks.remote_workdir import described_workdir

    left = described_workdir(WORKDIR.value)
    experiment, origins = resolve(CONFIG.value, given(), left, may_be_absent=DRY_RUN.value)
    if PRINT_CONFIG.value:
        print(settings_page(as_settings(experiment), origins))
        return 0
    if DRY_RUN.value:
        from cogview_jax.dry_run import report

        return report.run(experiment, DEVICES.value, ACCELERATOR.value or None)
    command_line.need(WORKDIR)
    START()
    from cogview_jax.tasks import training

    return training.run(experiment, WORKDIR.value, STALL_TIMEOUT.value)
