"""The paper's CogView: 48 layers of width 2560, 3,928,849,920 parameters, 1089 tokens a sequence.

    python -m cogview_jax.prepare --config configs/cogview_4b.py --workdir runs/cogview \\
        --config.data.from=runs/codec
    python -m cogview_jax.train --config configs/cogview_4b.py --workdir runs/cogview

Batch, schedule and regularisation are the paper's. What the file does not name has its default, and
those of model, optimizer, layout and vocabulary are the paper's too: `--print_config` shows them.
The mesh splits parameters over all devices.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "stage": "transformer",
            "precision": "bfloat16",
            "train": {"steps": 144_000, "global_batch": 6144, "sample_every": 5000},
            "mesh": {"data": 1, "fsdp": -1},
            # 0 allows the fused attention of GPUs and TPUs, which drops no weights.
            "model": {"attention_dropout": 0.1},
            "data": {"source": {"kind": "folder"}},
        }
    )
