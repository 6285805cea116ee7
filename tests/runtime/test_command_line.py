"""A command run as users run it: what it prints, what it returns; no mistake is a traceback."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

COMMAND = '''"""Paints a wall.

Run it again to paint on.
"""

import contextlib
import errno
import json
import logging
import os
import sys
import time

from absl import flags
from absl import logging as absl_logging

from cogview_jax.runtime import command_line, flag_kinds
from cogview_jax.runtime.config_flag import config_flag
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.faults import at_work
from cogview_jax.runtime.processes import leave_when_asked


def failed(code):
    return OSError(code, os.strerror(code), "wall.png")


FAULTS = {
    "full": failed(errno.ENOSPC),
    "gone": failed(errno.ESTALE),
    "denied": failed(errno.EACCES),
    "memory": MemoryError(),
    "stayed": SystemFault("wall.png: Input/output error (6 tries)"),
}
CONFIG = config_flag()


class SlowProgram:
    def lower(self):
        time.sleep(600)


WORKDIR = flag_kinds.path_flag("workdir", "where the wall stands", required=True)
COATS = flags.DEFINE_integer("coats", 2, "how many coats of paint", lower_bound=1)
SHEEN = flags.DEFINE_float("sheen", None, "how much it shines", 0, 1.5)
COLOUR = flags.DEFINE_enum("colour", "red", ["red", "blue"], "which paint")
PHOTO = flag_kinds.paths_flag("photo", "how it looks")
NOTE = flags.DEFINE_multi_string("note", [], "what to write on it")
DRY = flags.DEFINE_bool("dry", False, "let it dry")


def main():
    if WORKDIR.value == "bad":
        raise InputError("workdir = 'bad': expected a wall; choices: north, south")
    if WORKDIR.value == "lines":
        raise InputError("a file names\\nits own wall")
    if WORKDIR.value == "defect":
        raise ValueError("ours")
    if WORKDIR.value == "sleep":
        print("asleep", flush=True)
        time.sleep(600)
    if WORKDIR.value in ("compile", "leave"):
        from cogview_jax.runtime.compile_ahead import compile_ahead

        if WORKDIR.value == "leave":
            leave_when_asked()
        with compile_ahead(SlowProgram()):
            print("compiling", flush=True)
    if WORKDIR.value == "status":
        return 42
    if WORKDIR.value == "file":
        open("/nowhere/at/all")
    if WORKDIR.value in FAULTS:
        with at_work("half of it is kept") if COATS.value > 2 else contextlib.nullcontext():
            raise FAULTS[WORKDIR.value]
    import jax

    absl_logging.info("absl chatter")
    logging.getLogger("jax").info("jax chatter")
    if WORKDIR.value == "devices":
        jax.devices()
    result = CONFIG.value.to_dict() | {"x64": jax.config.jax_enable_x64}
    print(json.dumps(result | {"cache": jax.config.jax_compilation_cache_dir}))


if __name__ == "__main__":
    command_line.run(sys.modules[__name__])
'''

CONFIG = """
import ml_collections


def get_config(variant="plain"):
    return ml_collections.ConfigDict(
        {
            "train": {"steps": 10, "lr": 0.1, "remat": False, "betas": (0.9, 0.95)},
            "model": {"size": {"plain": 4, "large": 16}[variant]},
            "init_from": None,
            "names": ["a"],
        }
    )
"""


@pytest.fixture
def call(tmp_path, root):
    """Runs the command with the arguments given; the result has returncode, stdout, stderr."""
    (tmp_path / "paint.py").write_text(COMMAND)
    (tmp_path / "cfg.py").write_text(CONFIG)
    environment = os.environ | {"PYTHONPATH": str(root), "HOME": str(tmp_path)}
    del environment["JAX_COMPILATION_CACHE_DIR"]

    def start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **variables):
        return subprocess.Popen(
            [sys.executable, "paint.py", *arguments],
            cwd=tmp_path,
            env=environment | variables,
            stdout=stdout,
            stderr=stderr,
            text=True,
        )

    def run(*arguments, **variables):
        process = start(*arguments, **variables)
        stdout, stderr = process.communicate(timeout=300)
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)

    run.start, run.environment = start, environment
    return run


def settings(result):
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return json.loads(result.stdout)


def test_config_file_and_compilation_cache(call, tmp_path):
    plain = settings(call("--config=cfg.py", "--workdir=w"))
    assert plain["train"] == {"steps": 10, "lr": 0.1, "remat": False, "betas": [0.9, 0.95]}
    assert plain["model"] == {"size": 4}
    assert plain["init_from"] is None
    assert plain["cache"] == str(tmp_path / ".cache" / "cogview_jax" / "xla")


def test_overrides(call):
    changed = settings(
        call(
            *("--config", "cfg.py:large", "--workdir", "w", "--config.train.steps=3"),
            *("--config.train.lr=1", "--config.train.remat", "--config.train.betas=(0.5,0.6)"),
            *("--config.init_from=runs/demo/bundle", "--config.train.steps=4"),
        )
    )
    assert changed["train"] == {"steps": 4, "lr": 1.0, "remat": True, "betas": [0.5, 0.6]}
    assert changed["model"] == {"size": 16}
    assert changed["init_from"] == "runs/demo/bundle"


GOOD = ("--config=cfg.py", "--workdir=w")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*GOOD, "--wokdir=x"), "there is no flag --wokdir; did you mean workdir?"),
        (("--config=cfg.py",), "--workdir TEXT is missing: where the wall stands"),
        (("--workdir=w",), "--config FILE_OR_NAME[:variant] is missing: the experiment"),
        ((*GOOD, "more"), "unexpected argument 'more'"),
        (("--config=cfg.py", "--workdir"), "--workdir TEXT has no value: where the wall stands"),
        ((*GOOD, "--config.train.betas"), "--config.train.betas VALUE has no value: "),
        ((*GOOD, "--nonote=x"), "there is no flag --nonote; did you mean note?"),
        ((*GOOD, "--coats=two"), "--coats=two: expected a whole number"),
        ((*GOOD, "--coats=0"), "--coats=0: expected a whole number, at least 1"),
        ((*GOOD, "--sheen=much"), "--sheen=much: expected a number"),
        ((*GOOD, "--sheen=2"), "--sheen=2: expected a number from 0 to 1.5"),
        ((*GOOD, "--sheen=nan"), "--sheen=nan: expected a number from 0 to 1.5"),
        ((*GOOD, "--sheen", "much"), "--sheen=much: expected a number from 0 to 1.5"),
        ((*GOOD, "--dry=7"), "--dry=7: expected true or false"),
        ((*GOOD, "--nodry=7"), "--nodry=7: expected --nodry, or --dry=true or false"),
        ((*GOOD, "--note", "--coats=two", "--coats=-1"), "--coats=-1: expected a whole number"),
        ((*GOOD, "--colour=green"), "--colour=green: expected one of red, blue"),
        (("--config=cgf.py", "--workdir=w"), "config file cgf.py does not exist; . has cfg.py"),
        ((*GOOD, "--config.trian.steps=2"), "cfg.py has no config.trian; did you mean train?"),
        ((*GOOD, "--config.train.steps=two"), "--config.train.steps=two: expected a whole number"),
        ((*GOOD, "--config.train=3"), "--config.train=3: Failed to parse '3' as a ConfigDict"),
        ((*GOOD, "--config.names=b"), "--config.names cannot be given here: change it in the"),
        (("--config.train.steps=2", *GOOD), "Found --config.train.steps=2 in argv before"),
        (("--config=cfg.py", "--workdir=bad"), "workdir = 'bad': expected a wall; choices: north"),
        (("--config=cfg.py", "--workdir="), "--workdir=: expected a path, this is empty"),
        (("--config=cfg.py", "--workdir=gs://b/w"), "--workdir=gs://b/w: expected the path of a"),
        (("--config=cfg.py", "--workdir=lines"), "error: a file names its own wall"),
        ((*GOOD, "--photo=a.png", "--photo=s3://b/x"), "--photo=s3://b/x: expected the path of a"),
        (("--config=cfg.py", "--workdir=file"), "/nowhere/at/all: No such file or directory"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(call, arguments, message):
    result = call(*arguments)
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert result.returncode == 2


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        ("full", "wall.png: No space left on device", 1),
        ("gone", "wall.png: Stale file handle", 1),
        ("memory", "not enough memory", 1),
        ("stayed", "wall.png: Input/output error (6 tries)", 1),
        ("denied", "wall.png: Permission denied", 2),  # before the work: a name that was given
        ("denied --coats=3", "wall.png: Permission denied; half of it is kept", 1),
        ("full --coats=3", "wall.png: No space left on device; half of it is kept", 1),
    ],
)
def test_what_the_machine_fails_in_is_one_line_and_worth_a_restart(
    call, arguments, message, status
):
    workdir, *coats = arguments.split()
    result = call("--config=cfg.py", f"--workdir={workdir}", *coats)
    assert (result.returncode, result.stderr) == (status, f"error: {message}\n")


def test_a_platform_that_is_not_there_is_one_line(call):
    result = call("--config=cfg.py", "--workdir=devices", JAX_PLATFORMS="abacus")
    assert "error: JAX_PLATFORMS=abacus: there is no such platform here\n" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.returncode == 2


def test_without_a_home_nothing_is_kept_and_arithmetic_is_in_32_bits_whatever_is_said(call):
    told = settings(call(*GOOD, HOME="/dev/null/nobody", JAX_ENABLE_X64="1"))
    assert told["cache"] in ("", None)
    assert told["x64"] is False


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, as root alone may")
def test_a_user_without_home_and_name(root):
    unknown = ("setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups")
    command = (*unknown, sys.executable, "-m", "cogview_jax.train", "--config=configs/demo.py")
    environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert result.stderr.startswith("error: --workdir TEXT is missing")
    assert result.returncode == 2


@pytest.mark.parametrize("arguments", [("--help",), ("--coats=0",)], ids=str)
def test_a_reader_that_leaves_ends_the_command_silently(call, arguments):
    """As in `... | head -1`: what goes on to be written meets a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        process = call.start(*arguments, stdout=writing)
        _, error = process.communicate(timeout=300)
        mistake = arguments == ("--coats=0",)
        assert process.returncode == (2 if mistake else 141)
        assert error.count("\n") == mistake
        process = call.start(*arguments, stdout=writing, stderr=writing)
        assert process.wait(timeout=300) == 141
    finally:
        os.close(writing)


def test_standard_streams_that_were_closed_before_are_none_of_its_files(call, tmp_path):
    command = f"exec {sys.executable} paint.py {' '.join(GOOD)} <&- >&- 2>&-"
    assert subprocess.run(command, shell=True, cwd=tmp_path, env=call.environment).returncode == 0


def test_our_own_defect_keeps_its_traceback(call):
    result = call("--config=cfg.py", "--workdir=defect")
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith("ValueError: ours\n")


def test_status_of_main_is_the_status(call):
    assert call("--config=cfg.py", "--workdir=status").returncode == 42


def test_help(call):
    result = call("--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == HELP


HELP = """\
Paints a wall.

Run it again to paint on.

usage: python paint.py --config FILE_OR_NAME[:variant] --workdir TEXT [flags]

flags:
  --config FILE_OR_NAME[:variant]
      the experiment: a file, or the name of a shipped one, such as demo; --config.KEY=VALUE
      changes one setting, such as --config.train.steps=9 (required)
  --workdir TEXT
      where the wall stands (required)
  --coats N
      how many coats of paint (default: 2)
  --sheen X
      how much it shines
  --colour red|blue
      which paint (default: red)
  --photo TEXT
      how it looks (may be repeated)
  --note TEXT
      what to write on it (may be repeated)
  --[no]dry
      let it dry (default: False)
"""


def test_interruption(call):
    process = call.start("--config=cfg.py", "--workdir=sleep")
    assert process.stdout.readline() == "asleep\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=300)
    assert error == "interrupted; run the same command again to continue\n"
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("workdir", "number", "words", "status"),
    [
        ("compile", signal.SIGINT, "interrupted; run the same command again to continue\n", 130),
        ("leave", signal.SIGTERM, "asked to stop; run the same command again to go on\n", 75),
    ],
)
def test_nobody_waits_for_a_program_that_is_compiled_ahead(call, workdir, number, words, status):
    process = call.start("--config=cfg.py", f"--workdir={workdir}")
    assert process.stdout.readline() == "compiling\n"
    process.send_signal(number)
    _, error = process.communicate(timeout=300)
    assert (error, process.returncode) == (words, status)


PEER = """
import sys
import time

import jax
from absl import flags

from cogview_jax.runtime import command_line, flag_kinds
from cogview_jax.runtime.errors import InputError

ADDRESS = flags.DEFINE_string("address", None, "of process 0", required=True)
PROCESS = flags.DEFINE_integer("process", None, "which one this is", required=True)


def main():
    jax.distributed.initialize(ADDRESS.value, 2, PROCESS.value)
    if PROCESS.value == 1:
        raise InputError("only process 1 sees it")
    time.sleep(600)


if __name__ == "__main__":
    command_line.run(sys.modules[__name__])
"""


def test_a_failing_process_does_not_wait_for_its_peers(tmp_path, root):
    (tmp_path / "peer.py").write_text(PEER)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    peers = [
        subprocess.Popen(
            [sys.executable, "peer.py", "--address", address, "--process", str(process)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(root)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        _, error = peers[1].communicate(timeout=300)
        assert "error: only process 1 sees it\n" in error
        assert peers[1].returncode == 2
        assert peers[0].poll() is None
    finally:
        for peer in peers:
            peer.kill()
            peer.communicate()
