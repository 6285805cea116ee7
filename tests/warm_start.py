"""A program that imports what commands import, and forks for each that it is told to run.

    python warm_start.py

Imports take half of the CPU time of a short command. Behind them, a forked command is as one that a
user starts: a process of its own, which no thread, device, flag or file of another has touched, and
which ends as Python ends. A line of standard input names a folder (see `command_runs.Command`). The
program ends with its standard input.
"""

import gc
import importlib
import json
import os
import runpy
import select
import sys
from pathlib import Path

import jax

#: None of them defines flags, starts a thread or asks for devices.
MODULES = (
    "cogview_jax.checkpoints.bundle_writer",
    "cogview_jax.checkpoints.checkpointer",
    "cogview_jax.commands.describe_images",
    "cogview_jax.commands.sample_images",
    "cogview_jax.interop.conversion",
    "cogview_jax.tasks.experiment",
    "cogview_jax.tasks.training",
)


def serve() -> Path:
    """Forks for every folder; returns, in a forked process, its own."""
    running: dict[int, Path] = {}
    waiting, ended = b"", False
    while running or not ended:
        ready, _, _ = select.select([] if ended else [0], [], [], 0.02 if running else None)
        if ready:
            read = os.read(0, 65536)
            ended = not read
            *folders, waiting = (waiting + read).split(b"\n")
            for folder in map(Path, map(os.fsdecode, folders)):
                pid = os.fork()
                if pid == 0:
                    return folder
                running[pid] = folder
                write(folder / "pid", pid)
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            write(running.pop(pid) / "status", os.waitstatus_to_exitcode(status))
    sys.exit()


def write(path: Path, number: int) -> None:
    """Writes a number into a file, which is there once the number is."""
    new = path.with_suffix(".new")
    new.write_text(str(number))
    new.rename(path)


def become(folder: Path) -> None:
    """Runs, in this process, the program that the folder's file command.json describes."""
    command = json.loads((folder / "command.json").read_bytes())
    for descriptor, path in enumerate((os.devnull, folder / "stdout", folder / "stderr")):
        opened = os.open(path, os.O_WRONLY | os.O_APPEND if descriptor else os.O_RDONLY)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(command["place"])
    os.environ.update(command["environment"])
    # Whatever else Jax reads of its environment it has read when it was imported.
    if devices := command["environment"].get("JAX_NUM_CPU_DEVICES"):
        jax.config.update("jax_num_cpu_devices", int(devices))
    program, *sys.argv[1:] = command["program"]
    sys.path[1:1] = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if program == "-m":
        module = sys.argv.pop(1)
        sys.path[0] = command["place"]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv[0] = str(Path(program).parent), program
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    for name in MODULES:
        importlib.import_module(name)
    gc.freeze()  # what collections leave alone stays shared between the processes
    become(serve())
