"""How the processes of one run find each other, stop together, and notice that one is gone.

A process learns its number from flags, from the environment that a launcher set, or from the
cluster it runs on. Every failure between processes ends the run within a configured time: a process
that dies or freezes sends no heartbeats, and the others are ended; the others stop waiting for one
that never starts; a process that fails exits at once and does not wait for the others.
"""

import glob
import importlib.util
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from absl import flags

from cogview_jax.runtime.errors import InputError

flags.disclaim_key_flags()  # the flags belong to the command that asks for them

#: Exit status of a run that was asked to stop: its state is saved, the same command continues it.
PREEMPTED = 75
#: Where the coordinator listens if only its host is known.
PORT = 8476
#: When this process began, in seconds since 1970.
STARTED = time.time()

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessInfo:
    """One process among those of a run.

    coordinator: "host:port" of process 0; None leaves all three to jax's own detection (TPU pods).
    found: where the values come from, for messages.
    """

    coordinator: str | None
    processes: int | None
    process: int | None
    found: str

    def __post_init__(self):
        if self.coordinator is None:
            return
        if not re.fullmatch(r".+:\d+", self.coordinator):
            raise InputError(f"coordinator {self.coordinator!r} ({self.found}): expected HOST:PORT")
        if not 0 <= self.process < self.processes:
            raise InputError(
                f"process {self.process} of {self.processes} ({self.found}): expected a number of"
                " processes and one of 0 to that number - 1"
            )


@dataclass(frozen=True)
class Timeouts:
    """Whole seconds.

    heartbeat: when a process sends no heartbeat for this long, the run ends on all processes.
    initialization: how long a process waits at the start for the others. shutdown: how long a
    finished process waits for the others to finish.
    """

    heartbeat: int = 30
    initialization: int = 120
    shutdown: int = 30

    def __post_init__(self):
        for name, seconds in vars(self).items():
            if not 1 <= seconds <= 10**6:
                raise InputError(f"--{name}_timeout={seconds}: expected 1 to 1000000 seconds")


def distributed_flags() -> Callable[[], None]:
    """Defines the flags of a command that runs as several processes.

    Returns:
        A function that reads the parsed flags and calls `start`.
    """
    coordinator = flags.DEFINE_string(
        "coordinator",
        "",
        "process 0's HOST:PORT, in a run of several processes; found by itself where the files in"
        " launch/ start them, in SLURM steps and on TPU pods",
    )
    processes = flags.DEFINE_integer("num_processes", None, "how many processes the run has")
    process = flags.DEFINE_integer("process_id", None, "which of them this is, from 0")
    defaults = Timeouts()
    timeouts = {
        "heartbeat": "seconds without a sign of life after which a process counts as dead and the"
        " run ends",
        "initialization": "seconds to wait at the start for the other processes",
        "shutdown": "seconds to wait at the end for the other processes",
    }
    holders = {
        name: flags.DEFINE_integer(f"{name}_timeout", getattr(defaults, name), text)
        for name, text in timeouts.items()
    }

    def begin() -> None:
        info = find_process_info(coordinator.value, processes.value, process.value, os.environ)
        start(info, Timeouts(**{name: holder.value for name, holder in holders.items()}))

    return begin


def find_process_info(
    coordinator: str, processes: int | None, process: int | None, environ: Mapping[str, str]
) -> ProcessInfo | None:
    """The number of this process, from flags, a launcher, SLURM or a TPU pod; None if it is alone.

    Args:
        coordinator: "host:port", or empty. All three of these are given, or none.
        processes: the number of processes.
        process: the number of this process, from 0.
        environ: the environment. A launcher (the files in launch/, GKE's included) sets
            JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; SLURM has its own.

    Raises:
        InputError: the three are incomplete, or do not fit together.
    """
    given = (coordinator or None, processes, process)
    if any(value is not None for value in given):
        if None in given:
            raise InputError(
                f"--coordinator={coordinator} --num_processes={processes} --process_id={process}:"
                " give all three or none of them"
            )
        return ProcessInfo(coordinator, processes, process, "from flags")
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    if any(name in environ for name in names):
        if missing := [name for name in names if name not in environ]:
            raise InputError(f"the environment lacks {', '.join(missing)} beside the others")
        count, index = (_whole(environ, name) for name in names[1:])
        return ProcessInfo(environ[names[0]], count, index, "from JAX_*")
    for detect in (_slurm, _tpu):
        info = detect(environ)
        if info is not None:
            return info
    return None


def start(info: ProcessInfo | None, timeouts: Timeouts) -> None:
    """Connects this process to the others, before any jax work. Does nothing for a single process.

    If the others do not connect in time, the process prints a message and exits with status 1.
    """
    if info is None:
        return
    import jax

    def give_up() -> None:
        where = info.coordinator or "the coordinator jax found"
        print(
            f"error: process {info.process} of {info.processes} ({info.found}) did not meet all"
            f" the others at {where} within {timeouts.initialization} s (--initialization_timeout):"
            " is every process started, and does every host reach that address?",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    # Before jax's own timeout, which aborts without saying which process this is.
    timer = threading.Timer(timeouts.initialization, give_up)
    timer.daemon = True
    timer.start()
    jax.distributed.initialize(
        info.coordinator,
        info.processes,
        info.process,
        heartbeat_timeout_seconds=timeouts.heartbeat,
        initialization_timeout=timeouts.initialization + 30,
        shutdown_timeout_seconds=timeouts.shutdown,
        # We have asked the cluster: jax would give a process of a GPU node one of its devices.
        cluster_detection_method=None if info.coordinator is None else "deactivate",
    )
    timer.cancel()


def leave_when_asked() -> None:
    """From here on SIGTERM ends this process with status `PREEMPTED`, as soon as it can.

    For commands that keep what they have done, whenever they end. Files that are half-written are
    removed, and locks released.
    """

    def leave(number: int, frame: Any) -> None:
        print("asked to stop; run the same command again to go on", file=sys.stderr, flush=True)
        raise SystemExit(PREEMPTED)

    signal.signal(signal.SIGTERM, leave)


class StopRequest:
    """Records that one of the processes of the run received SIGTERM.

    A cluster sends SIGTERM before it reclaims a machine. All processes stop after the same step, so
    that they save one state.

        with StopRequest() as stop:
            ...
            if stop.reached(step):
    """

    def __init__(self):
        """No signal is handled before the `with` block."""
        self._asked = False
        #: Whether the run was told to stop while it waited.
        self.waited = False
        self._before: Any = None

    def __enter__(self) -> "StopRequest":
        """Handles SIGTERM from here on."""
        import jax

        # In a run of several processes jax listens for the signal, and tells the others.
        self._together = jax.distributed.is_initialized()
        if not self._together:
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *exception) -> None:
        """Restores the previous handler of SIGTERM."""
        if not self._together:
            signal.signal(signal.SIGTERM, self._before)

    def reached(self, step: int) -> bool:
        """Whether to stop after `step` steps; every process must call this after every step."""
        if not self._together:
            return self._asked
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    def waiting(self) -> bool:
        """Whether to stop while the run waits for the data of the next step.

        Always False in a run of several processes, which stop only after a step.
        """
        self.waited = self._asked and not self._together
        return self.waited

    def _ask(self, number: int, frame: Any) -> None:
        self._asked = True


def is_primary() -> bool:
    """Whether this is process 0, which writes the files and messages of the whole run."""
    import jax

    return jax.process_index() == 0


def log(line: str) -> None:
    """Prints one line on standard error, on process 0 only."""
    if is_primary():
        print(line, file=sys.stderr, flush=True)


def barrier(name: str) -> None:
    """Waits until every process has called this; returns at once in a run of one."""
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def primary_first(function: Callable[[], T], name: str) -> T:
    """Runs `function()` on process 0 first, and then on the others.

    For functions that create files if they are missing, such as a generated data set.
    """
    if not is_primary():
        barrier(name)
        return function()
    result = function()
    barrier(name)
    return result


def _slurm(environ: Mapping[str, str]) -> ProcessInfo | None:
    """The tasks that one srun started.

    A batch script or an interactive shell has SLURM's variables too, but is not one of several
    tasks.
    """
    if "SLURM_STEP_NUM_TASKS" not in environ or "SLURM_PROCID" not in environ:
        return None
    count = _whole(environ, "SLURM_STEP_NUM_TASKS")
    if count < 2:
        return None
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
    # Jobs that share a node listen on different ports.
    job = _whole(environ, "SLURM_JOB_ID") if "SLURM_JOB_ID" in environ else 0
    coordinator = f"{first_node(nodes)}:{61440 + job % 4096}"
    return ProcessInfo(coordinator, count, _whole(environ, "SLURM_PROCID"), "from SLURM")


def first_node(nodes: str) -> str:
    """Returns the first host of a SLURM node list: "gpu[007-009,12],login" -> "gpu007"."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^,\[]*))?", nodes)
    if match is None:
        raise InputError(f"SLURM_STEP_NODELIST={nodes!r}: expected a list of nodes")
    return "".join(part or "" for part in match.groups())


def _tpu(environ: Mapping[str, str]) -> ProcessInfo | None:
    """A machine with TPUs: jax asks GKE's variables or the cloud's metadata for the rest."""
    if "cpu" in environ.get("JAX_PLATFORMS", ""):
        return None
    devices = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    if "TPU_WORKER_HOSTNAMES" not in environ and not (
        devices and importlib.util.find_spec("libtpu")
    ):
        return None
    return ProcessInfo(None, None, None, "from the TPU machine")


def _whole(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError:
        raise InputError(f"{name}={environ[name]!r}: expected a whole number") from None


def host_name() -> str:
    """Returns the name of this machine, for messages."""
    return socket.gethostname()
