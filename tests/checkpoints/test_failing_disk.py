"""A disk that fails for a while: what is read says so, and nothing is taken for damaged."""

import errno
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

PROGRAM = """
import errno, json, os, sys, threading, time
from pathlib import Path

import jax
import numpy as np

from cogview_jax.checkpoints.stored_tree import restore_tree, stored_tree
from cogview_jax.checkpoints.tree_writer import save_tree
from cogview_jax.data.records import Record
from cogview_jax.data.token_shards import TokenShards
from cogview_jax.data.token_store import TokenStore
from cogview_jax.data.token_writer import ShardWriter, write_store
from cogview_jax.runtime import faults

folder, flag, passing = Path(sys.argv[1]), Path(os.environ["FAIL_WHILE"]), []


class Images:
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return Record(str(i), np.zeros((1, 1, 3), np.uint8), ("x",))


class Encoder:
    def fit(self, record):
        return np.array([int(record.key)])

    def encode(self, items):
        return [([np.array([1])], item) for item in items]


shards = TokenShards(folder / "failing", plan={}, records=4, shard_size=2)
writer = ShardWriter(shards, Images(), Encoder(), batch_size=1, max_skipped=0.0)
write_store(shards, writer, {})
store = TokenStore(folder / "failing")
assert store[0].codes.tolist() == [0]
tree = folder / "failing" / "tree"
# A small array would be read with its description.
bits = np.random.default_rng(0).integers(0, 2, 60_000)
save_tree(tree, {"a": bits.astype(float)})
leaf = stored_tree(tree)["a"]
place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
shapes = {"a": jax.ShapeDtypeStruct((60_000,), "float32", sharding=place)}
reads = {
    "an open shard": lambda: store[1].codes.tolist(),
    "another shard": lambda: store[2].codes.tolist(),
    "one array": lambda: [float(leaf.make().sum())],
    "all arrays": lambda: [float(restore_tree(tree, shapes)["a"].sum())],
}
said = {}
for name, read in reads.items():
    flag.touch()
    faults.PAUSES = (0.0,)
    try:
        said[name] = repr(read())
    except Exception as error:
        said[name] = [type(error).__name__, str(error)]
    faults.PAUSES = (0.05,) * 6000
    threading.Timer(0.2, flag.unlink).start()
    said[name] = [*said[name], read()]  # it passes while the read waits
    while flag.exists():
        time.sleep(0.01)
print(json.dumps(said))
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc to build a failing disk with")
def test_a_disk_that_fails_is_waited_for_and_is_no_damage(root, tmp_path):
    source, library = root / "tests" / "checkpoints" / "failing_reads.c", tmp_path / "failing.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    environment = os.environ | {
        "LD_PRELOAD": str(library),
        "FAIL_ON": "/failing/",
        "FAIL_WHILE": str(tmp_path / "flag"),
        "FAIL_WITH": str(errno.EIO),
    }
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    result = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout.splitlines()[-1])
    array = [float(np.random.default_rng(0).integers(0, 2, 60_000).sum())]
    expected = {"an open shard": [1], "another shard": [2], "one array": array, "all arrays": array}
    for name, (kind, message, value) in said.items():
        assert (kind, value) == ("SystemFault", expected[name]), name
        assert message.endswith("Input/output error (2 tries)"), name
    assert said.keys() == expected.keys()
