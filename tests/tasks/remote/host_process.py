"""One of two hosts that see nothing of each other but a bucket; test_several_hosts.py starts them.

    python host_process.py FOLDER

FOLDER holds the config of the run. The last line is what the host found, a JSON object.
"""

import json
import os
import sys
from pathlib import Path

import jax

from cogview_jax.data.remote import files
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.processes import StopRequest, Timeouts, find_process_info, start
from cogview_jax.tasks import workdir_upload
from cogview_jax.tasks.experiment import read_experiment
from cogview_jax.tasks.training import run
from folder_bucket import FolderBucket

ADDRESS = "s3://bucket/runs/demo"


def main(folder):
    """A run without a bucket, and one that is stopped and goes on where both disks are empty."""
    bucket = FolderBucket(folder / "bucket")
    files.file_system = lambda name: bucket
    workdir_upload.PAUSE = 0.05
    experiment = read_experiment(json.loads((folder / "config.json").read_text()))
    own = folder / f"host{jax.process_index()}"
    yield "whole", run(experiment, str(folder / "whole"))

    os.environ["COGVIEW_WORKDIRS"] = str(own / "first")
    reached, StopRequest.reached = StopRequest.reached, lambda self, step: step == 5
    yield "stopped", run(experiment, ADDRESS)
    StopRequest.reached = reached
    os.environ["COGVIEW_WORKDIRS"] = str(own / "second")
    yield "ended", run(experiment, ADDRESS)

    if jax.process_index() == 1:
        (own / "third").touch()
        os.environ["COGVIEW_WORKDIRS"] = str(own / "third")
    try:
        run(experiment, ADDRESS)
    except (InputError, SystemFault, OSError) as error:
        yield "refused", str(error)


if __name__ == "__main__":
    start(find_process_info("", None, None, os.environ), Timeouts(heartbeat=300))
    print(json.dumps(dict(main(Path(sys.argv[1])))), flush=True)
