#!/usr/bin/env bash
# orbax-checkpoint 0.12.8, jax 0.10.2, numpy 2.4.6, Python 3.11.
#
# Guess, before it was run: what is given to `CheckpointManager.save` may change once the call has
# returned. Arrays may: jax arrays, and NumPy arrays too, are copied before.
# Seen: a dictionary in `JsonSave` may not. It is turned to text in the background, after the
# folders are made, so the checkpoint holds whatever the dictionary says by then. Here a position in
# the data is saved beside the arrays and moved to the next batch after `save`: of 20 checkpoints
# about half, others each time, hold the position of the next batch, so that a resumed run skips
# one. Nothing is said, a run that is not interrupted is right, and so is any run with
# `enable_async_checkpointing=False`, with which one looks for the fault.
# What helps: `JsonSave(copy.deepcopy(position))`.
#
# Output: "arrays: 0 of 20 as they were later", "JSON: some of 20 as they were later", "JSON,
# copied: 0 of 20 as they were later", "JSON, not in the background: 0 of 20 as they were later".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - "$folder/runs" <<'PYTHON'
import copy
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

SAVES, BATCH = 20, 64


def later(name, background=True, given=lambda position: position):
    """How many checkpoints hold arrays, and JSON, as they were after the call had returned."""
    kernel, position = np.zeros((500, 500), np.float32), {"next": 0}
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=background)
    arrays = json = 0
    with ocp.CheckpointManager(Path(sys.argv[1], name), options=options) as manager:
        for step in range(SAVES):
            state = ocp.args.StandardSave({"kernel": kernel})
            data = ocp.args.JsonSave(given(position))
            manager.save(step, args=ocp.args.Composite(state=state, data=data))
            kernel += 1
            position["next"] += BATCH
        manager.wait_until_finished()
        for step in range(SAVES):
            parts = ocp.args.Composite(
                state=ocp.args.StandardRestore(), data=ocp.args.JsonRestore()
            )
            saved = manager.restore(step, args=parts)
            arrays += bool((saved.state["kernel"] != step).any())
            json += saved.data["next"] != step * BATCH
    return arrays, json


arrays, json = later("shared")
copied = later("copied", given=copy.deepcopy)[1]
waiting = later("waiting", background=False)[1]
print(f"arrays: {arrays} of {SAVES} as they were later")
print(f"JSON: {'some' if json else 0} of {SAVES} as they were later")
print(f"JSON, copied: {copied} of {SAVES} as they were later")
print(f"JSON, not in the background: {waiting} of {SAVES} as they were later")
print(f"({json} here)", file=sys.stderr)
sys.exit((arrays, json > 0, copied, waiting) != (0, True, 0, 0))
PYTHON
