"""Shards as tasks on a Ray cluster that loses a node; without Ray, one line that says so."""

import contextlib
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from cogview_jax.tasks import preparation
from cogview_jax.tasks.workdir import Workdir
from command_runs import write_drawing

#: Records of a shard, and of all.
SHARD, COUNT = 4, 240


def test_without_ray_a_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "store_path", lambda data, workdir: tmp_path / "tokens")
    monkeypatch.setattr(preparation.importlib.util, "find_spec", lambda name: None)
    line = (
        r"--engine=ray needs Ray: install it on every node with `pip install 'cogview-jax\[ray\]'`"
    )
    with pytest.raises(preparation.InputError, match=line):
        preparation.prepare_run(
            SimpleNamespace(data=SimpleNamespace(mixture={})), Workdir(tmp_path), "ray"
        )
    assert not (tmp_path / "tokens").exists()


@pytest.fixture
def cluster():
    """Two nodes of one core, the second of which may be removed."""
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False}
    with contextlib.closing(Nodes(Cluster(initialize_head=True, head_node_args=head))) as nodes:
        yield nodes


class Nodes:
    def __init__(self, cluster):
        self.cluster, self.second = cluster, cluster.add_node(num_cpus=1)

    def kill_second(self):
        self.cluster.remove_node(self.second, allow_graceful=False)

    def close(self):
        self.cluster.shutdown()


def test_a_cluster_that_loses_a_node_makes_the_store_of_one_process(chain, cluster, root, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(COUNT):
        caption, _ = write_drawing(images / f"{number:03}.png", number)
        (images / f"{number:03}.txt").write_text(caption)
    (images / "100.png").write_bytes(b"no image")

    def arguments(name):
        changes = (f"--workdir={tmp_path / name}", f"--config.data.source.path={images}")
        text = f"--config.data.text_tokenizer={chain.store / 'tokenizers' / 'text.model'}"
        return [*chain.transformer(name), *changes, text, f"--config.data.shard_size={SHARD}"]

    store = tmp_path / "cluster" / "tokens"
    command = [sys.executable, "-m", "cogview_jax.prepare", *arguments("cluster"), "--engine=ray"]
    environment = os.environ | {"RAY_ADDRESS": cluster.cluster.address, "PYTHONPATH": str(root)}
    with open(tmp_path / "said.txt", "w") as said:
        process = subprocess.Popen(command, env=environment, cwd=root, stdout=said, stderr=said)
    try:
        deadline = time.monotonic() + 300
        while len(list(store.glob("tokens-*.json"))) < 5:
            assert process.poll() is None, (tmp_path / "said.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        cluster.kill_second()
        assert not (store / "manifest.json").exists()
        assert process.wait(timeout=300) == 0, (tmp_path / "said.txt").read_text()
    finally:
        process.kill()
        process.wait()
    chain.succeed("prepare", *arguments("alone"))
    alone = {path.name: path for path in (tmp_path / "alone" / "tokens").iterdir()}
    assert alone.keys() == {path.name for path in store.iterdir()}
    for name, path in alone.items():
        assert path.is_dir() or path.read_bytes() == (store / name).read_bytes(), name
