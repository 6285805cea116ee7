#!/usr/bin/env bash
# orbax-checkpoint 0.12.8, jax 0.10.2, numpy 2.4.6, Python 3.11.
#
# Guess, before it was run: a metric that is NaN counts as the worst, so that its checkpoint is the
# first to go, and the others are ranked as if it were not there.
# Seen: CheckpointManager with best_fn and max_to_keep=2 sorts by the metric, and NaN compares with
# nothing, so one NaN splits the order in two. Of the losses 1, NaN, 2, 3, 4 (lower is better) the
# steps with 2 and 3 stay: the best one is deleted as soon as the third is saved, and best_step()
# names the step with 2. Of 5, 4, NaN, 6, 7 the steps with 6 and 7 stay. The same losses without the
# NaN keep 1 and 2, and 4 and 5. One validation of a diverging step costs the best checkpoint of the
# run, and nothing is said.
# What helps: give best_fn a number in the place of NaN, the worst there is (math.inf where lower is
# better).
#
# Output: "[1.0, nan, 2.0, 3.0, 4.0] keeps [2.0, 3.0]", "[5.0, 4.0, nan, 6.0, 7.0] keeps [6.0, 7.0]",
# "[1.0, 2.0, 3.0, 4.0] keeps [1.0, 2.0]", "[5.0, 4.0, 6.0, 7.0] keeps [5.0, 4.0]".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - "$folder/runs" <<'PYTHON'
import math
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

found = {}
for run, losses in enumerate(
    [
        [1.0, math.nan, 2.0, 3.0, 4.0],
        [5.0, 4.0, math.nan, 6.0, 7.0],
        [1.0, 2.0, 3.0, 4.0],
        [5.0, 4.0, 6.0, 7.0],
    ]
):
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2,
        best_fn=lambda metrics: metrics["loss"],
        best_mode="min",
        enable_async_checkpointing=False,
    )
    with ocp.CheckpointManager(Path(sys.argv[1], str(run)), options=options) as manager:
        for step, loss in enumerate(losses):
            arguments = ocp.args.StandardSave({"kernel": np.zeros(2)})
            manager.save(step, args=arguments, metrics={"loss": loss})
        found[str(losses)] = [losses[step] for step in sorted(manager.all_steps())]
for losses, kept in found.items():
    print(losses, "keeps", kept)
sys.exit([*found.values()] != [[2.0, 3.0], [6.0, 7.0], [1.0, 2.0], [5.0, 4.0]])
PYTHON
