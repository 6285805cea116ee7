"""Measures the losses of a run on several hosts of a real network, and the bytes they send.

    python -m bench.hosts [--hosts 4] [--steps 120]

Every host is a Linux network namespace with an address of its own on a bridge, so that an interface
counts all bytes that processes send each other. A small image tokenizer trains once on each mesh.
The losses must be those of one process. The bytes that a host sends in a step are printed beside
those that `train --dry_run` predicts, and written to bench/results/hosts.json. The command needs
root and Linux, and says why if it cannot run.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from cogview_jax.dry_run.report import plan_run
from cogview_jax.runtime.files import write_json
from cogview_jax.tasks.experiment import read_experiment

ROOT = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "hosts.json"
MESHES = {"data": (-1, 1), "fsdp": (1, -1), "data and fsdp": (2, -1)}
PORT = 8476
#: Counting begins after so many steps, because the hosts connect in the first ones.
WARM = 20


class Network:
    """Network namespaces PREFIX0, PREFIX1, ... on one bridge; each is a host with a name."""

    def __init__(self, hosts: int, prefix: str = "cvh"):
        """The network is made when the block is entered."""
        self.hosts, self._prefix = hosts, prefix
        self._bridge = f"{prefix}br"

    def name(self, i: int) -> str:
        """Returns the name by which the other hosts know host i."""
        return f"{self._prefix}{i}"

    def __enter__(self) -> "Network":
        """Makes the network, after removing one that a killed program left."""
        self.remove()
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("link", "set", self._bridge, "up")
        names = "".join(f"10.231.7.{i + 1} {self.name(i)}\n" for i in range(self.hosts))
        for i in range(self.hosts):
            name, outside, inside = self.name(i), f"{self._prefix}o{i}", f"{self._prefix}i{i}"
            _ip("netns", "add", name)
            _ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", name)
            _ip("link", "set", outside, "master", self._bridge, "up")
            _ip("-n", name, "addr", "add", f"10.231.7.{i + 1}/24", "dev", inside)
            _ip("-n", name, "link", "set", inside, "up")
            _ip("-n", name, "link", "set", "lo", "up")
            hosts = Path("/etc/netns") / name / "hosts"
            hosts.parent.mkdir(parents=True, exist_ok=True)
            hosts.write_text(f"127.0.0.1 localhost\n{names}")
        return self

    def __exit__(self, *exception) -> None:
        """Removes the network."""
        self.remove()

    def remove(self) -> None:
        """Removes the parts of the network that exist."""
        for i in range(self.hosts):
            for command in (
                ("link", "del", f"{self._prefix}o{i}"),
                ("netns", "del", self.name(i)),
            ):
                subprocess.run(["ip", *command], capture_output=True)
            shutil.rmtree(Path("/etc/netns") / self.name(i), ignore_errors=True)
        subprocess.run(["ip", "link", "del", self._bridge], capture_output=True)

    def command(self, i: int, command: list[str]) -> list[str]:
        """Returns `command` for host i. Gloo publishes the address of the host's own name."""
        inner = f"hostname {self.name(i)}; exec " + " ".join(f"'{part}'" for part in command)
        return ["ip", "netns", "exec", self.name(i), "unshare", "--uts", "sh", "-c", inner]

    def sent(self, i: int) -> int:
        """Returns the bytes that host i has sent so far, with headers."""
        # The outer end receives what the host, which is the inner end, has sent.
        counter = f"/sys/class/net/{self._prefix}o{i}/statistics/rx_bytes"
        return int(Path(counter).read_text())


def why_not() -> str:
    """Returns why this machine cannot make such a network, or an empty text if it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    for program in ("ip", "unshare"):
        if shutil.which(program) is None:
            return f"there is no program {program}"
    try:
        with Network(1, "cvtry"):
            return ""
    except subprocess.CalledProcessError as error:
        return f"{' '.join(error.cmd)}: {error.stderr.strip()}"


def settings(folder: Path, steps: int, mesh: tuple[int, int]) -> list[str]:
    """Returns the arguments of `train` for the image tokenizer of the demo, on small images."""
    values = {
        "data.source.path": folder / "drawings",
        "data.source.size": 16,
        "data.source.train_count": 64,
        "model.image_size": 16,
        "model.channels": "(64,256)",
        "model.codebook": 64,
        "model.code_width": 32,
        "model.residual_blocks": 0,
        "train.steps": steps,
        "train.global_batch": 8,
        "train.log_every": 1,
        "train.checkpoint_every": 10 * steps,
        "train.sample_every": 0,
        "mesh.data": mesh[0],
        "mesh.fsdp": mesh[1],
    }
    return ["--config=configs/demo_codec.py", *(f"--config.{n}={v}" for n, v in values.items())]


def train(network: Network, folder: Path, steps: int, mesh: tuple[int, int]) -> dict:
    """Trains on all hosts, one device each; returns the losses, and the bytes sent per step."""
    arguments = [*settings(folder, steps, mesh), f"--workdir={folder / 'run'}"]
    program = [sys.executable, "-m", "cogview_jax.train", *arguments]
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    with contextlib.ExitStack() as stack:
        processes = []
        for i in range(network.hosts):
            place = [f"--coordinator={network.name(0)}:{PORT}", f"--process_id={i}"]
            place += [f"--num_processes={network.hosts}", "--heartbeat_timeout=10"]
            log = stack.enter_context((folder / f"{i}.log").open("w"))
            process = subprocess.Popen(
                network.command(i, [*program, *place]),
                cwd=ROOT,
                env=environ,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            stack.callback(process.kill)
            processes.append(process)
        samples = list(_sampled(network, folder, processes, steps))
        statuses = [process.wait(timeout=60) for process in processes]
    if any(statuses):
        raise AssertionError(f"exit statuses {statuses}: {(folder / '0.log').read_text()[-2000:]}")
    (first, before), (last, after) = samples[0], samples[-1]
    sent = [(b - a) / (last - first) for a, b in zip(before, after, strict=True)]
    return {"losses": losses(folder / "run"), "sent_per_step": sent, "steps_counted": last - first}


def _sampled(
    network: Network, folder: Path, processes: list[subprocess.Popen], steps: int
) -> Iterator[tuple[int, list[int]]]:
    """Returns (step, bytes sent by each host) for all logged steps but the first few."""
    path, seen = folder / "run" / "metrics" / "metrics.jsonl", WARM
    deadline = time.monotonic() + 300
    while all(process.poll() is None for process in processes):
        if time.monotonic() > deadline:
            raise AssertionError(f"stuck: {(folder / '0.log').read_text()[-2000:]}")
        done = path.read_bytes().count(b"\n") if path.exists() else 0
        # The last steps are left out, because the bundle is written after them.
        if seen < done < steps:
            seen = done
            yield done, [network.sent(i) for i in range(network.hosts)]
        time.sleep(0.002)


def losses(workdir: Path) -> list[float]:
    """Returns the losses of a run, step by step."""
    lines = (workdir / "metrics" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def alone(folder: Path, steps: int) -> list[float]:
    """Trains with one process and one device; returns the losses."""
    workdir = folder / "alone"
    arguments = [*settings(folder, steps, (-1, 1)), f"--workdir={workdir}"]
    subprocess.run(
        [sys.executable, "-m", "cogview_jax.train", *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
        check=True,
        capture_output=True,
    )
    return losses(workdir)


def foreseen(workdir: Path, hosts: int) -> float:
    """Returns the bytes that a dry run expects each host to send in a step of a run."""
    config = json.loads((workdir / "config.json").read_text())
    return plan_run(read_experiment(config), hosts).sent


def measure(folder: Path, hosts: int, steps: int) -> dict:
    """Trains on all meshes and in one process alone; returns the content of hosts.json."""
    reference = alone(folder, steps)
    rows = {}
    with Network(hosts) as network:
        for name, mesh in MESHES.items():
            shutil.rmtree(folder / "run", ignore_errors=True)
            found = train(network, folder, steps, mesh)
            apart = [abs(a / b - 1) for a, b in zip(found["losses"], reference, strict=True)]
            sent = sum(found["sent_per_step"]) / hosts
            expected = foreseen(folder / "run", hosts)
            rows[name] = {
                "sent_per_step": sent,
                "foreseen": expected,
                "ratio": sent / expected,
                "steps_counted": found["steps_counted"],
                "largest_difference_of_a_loss": max(apart),
            }
    return {"hosts": hosts, "steps": steps, "jax": jax.__version__, "meshes": rows}


def main() -> None:
    """Measures, prints the table, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--steps", type=int, default=120)
    given = parser.parse_args()
    if reason := why_not():
        sys.exit(f"this machine cannot make a network of hosts: {reason}")
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), given.hosts, given.steps)
    write_json(RESULT, result)
    print(
        f"{given.hosts} hosts; bytes each sends a step, on the wire and as a dry run foresees them"
    )
    for name, row in result["meshes"].items():
        print(
            f"  {name:15}{row['sent_per_step']:14,.0f}{row['foreseen']:14,.0f}"
            f"{row['ratio']:8.3f}   losses within {row['largest_difference_of_a_loss']:.1e}"
        )


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


if __name__ == "__main__":
    main()
