"""The flag `--config` of the commands that work on an experiment."""

from collections.abc import Mapping
from typing import Any

from absl import flags

from cogview_jax.runtime.config_flag import config_flag

flags.disclaim_key_flags()  # the flag belongs to the command that asks for it


def experiment_flag() -> flags.FlagHolder:
    """Defines `--config`, whose value has every setting of the experiment that the file describes.

    `cogview_jax.tasks.experiment.read_experiment` makes the experiment of it.
    """
    return config_flag(schema=_schema)


def _schema(config: Mapping[str, Any]) -> type:
    # Imports jax: only once there is a config.
    from cogview_jax.tasks.experiment import experiment_type

    return experiment_type(config)
