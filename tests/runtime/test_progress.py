"""A job reports how far it has come, at a bearable pace."""

import io
import time

import pytest

from cogview_jax.runtime.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_log_gets_one_line_for_a_short_job():
    log = io.StringIO()
    with Progress(5, "prepare", unit="shard", stream=log) as progress:
        for i in range(5):
            progress.update(pairs=i * 10, loss=0.123456)
    (line,) = log.getvalue().splitlines()
    assert line.startswith("prepare  shard 5/5  ")
    assert line.endswith("pairs 40  loss 0.1235")


def test_log_is_written_every_ten_seconds(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    log = io.StringIO()
    progress = Progress(100, "train", stream=log)
    for _ in range(60):  # two minutes at 2 s a step
        now += 2.0
        progress.update()
    progress.close()
    lines = log.getvalue().splitlines()
    assert len(lines) == 12
    assert lines[0] == "train  step 5/100  2 s/step  0:03:10 left"
    assert lines[-1] == "train  step 60/100  2 s/step  0:01:20 left"


def test_rate_forgets_the_first_unit_and_what_a_resumed_run_had_done(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress = Progress(1000, "train", start=500, stream=io.StringIO())
    now = 60.0  # compiling
    progress.update()
    assert "60 s/step" in progress.line(now)
    for _ in range(10):
        now += 0.25
        progress.update()
    assert progress.line(now) == "train  step 511/1000  4 step/s  0:02:02 left"


def test_slow_units_are_counted_by_the_minute(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress = Progress(10, "sample", unit="image", stream=io.StringIO(), per_minute=True)
    for _ in range(3):
        now += 12.0
        progress.update()
    assert progress.line(now) == "sample  image 3/10  5 image/min  0:01:24 left"


def test_terminal_line_overwrites_itself_and_fits(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    screen = Terminal()
    with Progress(3, "train", stream=screen) as progress:
        for _ in range(3):
            time.sleep(0.11)
            progress.update(note="x" * 100)
    text = screen.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    frames = text.rstrip("\n").split("\r")[1:]
    assert [frame[:15] for frame in frames] == [f"train  step {i}/3" for i in (1, 2, 3)]
    assert all(len(frame.removesuffix("\x1b[K")) <= 39 for frame in frames)


def test_an_error_still_closes_the_line():
    screen = Terminal()
    with pytest.raises(RuntimeError), Progress(3, "train", stream=screen) as progress:
        progress.update()
        raise RuntimeError
    assert screen.getvalue().endswith("\n")


def test_an_error_before_anything_is_done_stands_alone():
    log = io.StringIO()
    with pytest.raises(RuntimeError), Progress(3, "train", stream=log):
        raise RuntimeError
    assert log.getvalue() == ""
