"""The official release's tutorial model: 12 layers of width 1024, 211,958,784 parameters.

    python -m cogview_jax.prepare --config configs/tutorial.py --workdir runs/tutorial \\
        --config.data.from=runs/codec
    python -m cogview_jax.train --config configs/tutorial.py --workdir runs/tutorial

One step of it runs on a CPU in a minute or two; training it is work for a GPU.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "stage": "transformer",
            # Parts of 3 rows: a step fits into 24 GB of memory.
            "train": {"steps": 20_000, "global_batch": 12, "accumulate": 4, "sample_every": 1000},
            "optimizer": {"lr": 4e-4, "weight_decay": 1e-2, "warmup": 0.1},
            "text_weight": 5.0,
            "model": {
                "layers": 12,
                "width": 1024,
                "heads": 16,
                "attention_dropout": 0.1,
                "embedding_gradient": 1.0,
            },
            "data": {"source": {"kind": "folder"}},
        }
    )
