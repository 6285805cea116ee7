"""Trains what a config describes: an image tokenizer or a transformer.

A run lives in --workdir: config.json, checkpoints/, metrics/ (TensorBoard, and metrics.jsonl for
programs), samples/, and on completion bundle/. The same command again continues an interrupted run
exactly where its last checkpoint stands, and does nothing for a finished one.

  python -m cogview_jax.train --config configs/demo_codec.py --workdir runs/codec
"""

from absl import flags

from cogview_jax.runtime import door
from cogview_jax.runtime.config_flag import config_flag

CONFIG = config_flag()
WORKDIR = flags.DEFINE_string("workdir", None, "the folder of the run", required=True)


def main() -> None:
    """Flags in, one job."""
    from cogview_jax.jobs import train
    from cogview_jax.jobs.experiment import read_experiment

    train.run(read_experiment(CONFIG.value), WORKDIR.value)


if __name__ == "__main__":
    door.run(main)
