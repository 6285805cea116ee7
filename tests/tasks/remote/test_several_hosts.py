"""Hosts that share no folder, but the bucket that the workdir of their run is in."""

import dataclasses
import json
import shutil
import threading

import jax
import numpy as np
import pytest

from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.manifest import find_damage, hashed, write_manifest
from cogview_jax.data.remote.bucket_lock import BucketLock
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.kv_store_sync import KVStoreSync
from cogview_jax.runtime.processes import PREEMPTED
from cogview_jax.tasks.experiment import read_experiment
from cogview_jax.tasks.workdir import resolved_settings
from cogview_jax.tasks.workdir_upload import WorkdirUpload
from cogview_jax.tasks.working_copy import WorkingCopy
from processes import Processes
from run_files import logged
from served_bundles import names_in
from writable_bucket import Answered, Killed

ADDRESS = "s3://bucket/runs/demo"


def test_two_hosts_go_on_as_the_unbroken_run(root, chain, tmp_path):
    found = read_experiment(json.loads((chain.codec / "config.json").read_text()))
    train = dataclasses.replace(
        found.train, steps=8, log_every=1, checkpoint_every=2, keep=1, bundle_step=6
    )
    mesh = dataclasses.replace(found.mesh, data=1, fsdp=-1)
    settings = resolved_settings(dataclasses.replace(found, train=train, mesh=mesh))
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with Processes(root, ["tests/tasks/remote/host_process.py", tmp_path], 2, 2) as both:
        both.succeed()
        outputs = [both.output(process) for process in range(2)]
    first, second = (json.loads(text.splitlines()[-1]) for text in outputs)
    refused = first.pop("refused"), second.pop("refused")
    assert first == second == {"whole": 0, "stopped": PREEMPTED, "ended": 0}
    assert refused[0].startswith("process 1 on ")
    assert refused[0].endswith(refused[1])
    assert "continues after step 5 of 8" in outputs[0]
    local = str(tmp_path / "host0")
    assert [x for x in outputs[0].splitlines() if local in x and "the run works in" not in x] == []

    copies = [next(tmp_path.glob(f"host{process}/second/*/demo")) for process in range(2)]
    assert logged(copies[0]) == logged(tmp_path / "whole")
    there = tmp_path / "bucket" / "bucket" / "runs" / "demo"
    assert (there / "metrics" / "metrics.jsonl").read_bytes() == (
        (copies[0] / "metrics" / "metrics.jsonl").read_bytes()
    )
    last = there / "checkpoints" / "8"
    assert find_damage(last) == []
    parts = [{*names_in(copy / "checkpoints" / "8")} - {"manifest.json"} for copy in copies]
    assert all(parts)
    assert parts[0] & parts[1] == set()
    assert parts[0] | parts[1] == {*names_in(last)} - {"manifest.json"}

    here, expected = Bundle(there / "bundle"), Bundle(tmp_path / "whole" / "bundle")
    assert here.step == expected.step == 6
    made, wanted = (jax.tree.leaves(each.codec().params) for each in (here, expected))
    for pair in zip(made, wanted, strict=True):
        np.testing.assert_array_equal(*pair)
