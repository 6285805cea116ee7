"""A job reports how far it has come, at a bearable pace."""

import io
import re
import threading
import time

import pytest

from cogview_jax.runtime import progress
from cogview_jax.runtime.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_log_gets_one_line_for_a_short_job():
    log = io.StringIO()
    with Progress(5, "prepare", unit="shard", stream=log) as job:
        for i in range(5):
            job.update(pairs=i * 10, loss=0.123456)
    (line,) = log.getvalue().splitlines()
    assert line.startswith("prepare  shard 5/5  ")
    assert line.endswith("pairs 40  loss 0.1235")


def test_log_is_written_every_ten_seconds(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    log = io.StringIO()
    job = Progress(100, "train", stream=log)
    for _ in range(60):  # two minutes at 2 s a step
        now += 2.0
        job.update()
    job.close()
    lines = log.getvalue().splitlines()
    assert len(lines) == 12
    assert lines[0] == "train  step 5/100  2 s/step  0:03:10 left"
    assert lines[-1] == "train  step 60/100  2 s/step  0:01:20 left"


def test_rate_forgets_the_first_unit_and_what_a_resumed_run_had_done(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    job = Progress(1000, "train", start=500, stream=io.StringIO())
    now = 60.0  # compiling
    job.update()
    assert "60 s/step" in job.line(now)
    for _ in range(10):
        now += 0.25
        job.update()
    assert job.line(now) == "train  step 511/1000  4 step/s  0:02:02 left"


def test_what_comes_after_the_last_unit_does_not_slow_the_units_down(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    job = Progress(5, "train", stream=io.StringIO())
    for _ in range(5):
        now += 2.0
        job.update()
    now += 100.0  # drawing samples, writing the bundle
    assert job.line(now) == "train  step 5/5  2 s/step"


def test_slow_units_are_counted_by_the_minute(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    job = Progress(10, "sample", unit="image", stream=io.StringIO(), per_minute=True)
    for _ in range(3):
        now += 12.0
        job.update()
    assert job.line(now) == "sample  image 3/10  5 image/min  0:01:24 left"


def test_terminal_line_overwrites_itself_and_fits(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    screen = Terminal()
    job = Progress(3, "train", stream=screen)  # without the thread that reports every second
    for _ in range(3):
        now += 0.11
        job.update(note="x" * 100)
    job.close()
    text = screen.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    frames = text.rstrip("\n").split("\r")[1:]
    assert [frame[:15] for frame in frames] == [f"train  step {i}/3" for i in (1, 2, 3)]
    assert all(len(frame.removesuffix("\x1b[K")) <= 39 for frame in frames)


class Read(io.StringIO):
    """Tells when something was written."""

    def __init__(self):
        super().__init__()
        self.written = threading.Event()

    def write(self, text):
        super().write(text)
        self.written.set()


def test_lines_come_while_nothing_is_reported(monkeypatch):
    """From a thread: the caller may be compiling, or hand over many steps before it waits."""
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    answers = iter([None, (3, {"loss": 2.5})])
    log = Read()
    with Progress(9, "train", stream=log, ask=lambda: next(answers, None)) as job:
        job.doing("compiling")
        assert log.written.wait(300)
        assert re.fullmatch(
            r"train  step 0/9  compiling, 0:\d\d:\d\d so far\n", log.getvalue().splitlines(True)[0]
        )
        log.written.clear()
        assert log.written.wait(300)
        assert re.fullmatch(
            r"train  step 3/9  .*  loss 2.5  0:\d\d:\d\d left\n", log.getvalue().splitlines(True)[1]
        )
        job.reach(3, loss=2.0)  # a log point that says nothing new of the count
        assert job.done == 3
        job.reach(9)
    assert log.getvalue().splitlines()[-1].startswith("train  step 9/9  ")


def test_what_is_waited_for_is_said(monkeypatch, capsys):
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    with progress.waiting("loading the bundle"):
        deadline, said = time.monotonic() + 300, ""
        while not said and time.monotonic() < deadline:
            said = capsys.readouterr().err
    assert re.match(r"loading the bundle, 0:\d\d:\d\d so far\n", said)
    capsys.readouterr()  # what was said before the block ended
    monkeypatch.setattr(progress, "INTERVAL", 300.0)
    with progress.waiting("nothing"):
        pass
    assert capsys.readouterr().err == ""


def test_an_error_still_closes_the_line():
    screen = Terminal()
    with pytest.raises(RuntimeError), Progress(3, "train", stream=screen) as job:
        job.update()
        raise RuntimeError
    assert screen.getvalue().endswith("\n")


def test_an_error_before_anything_is_done_stands_alone():
    log = io.StringIO()
    with pytest.raises(RuntimeError), Progress(3, "train", stream=log):
        raise RuntimeError
    assert log.getvalue() == ""
