"""A job reports how far it has come, at a bearable pace."""

import io
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cogview_jax.runtime import progress
from cogview_jax.runtime.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A list of one number, the seconds of the clock."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_log_gets_one_line_for_a_short_job(clock):
    log = io.StringIO()
    with Progress(5, "prepare", unit="shard", stream=log) as job:
        for i in range(5):
            clock[0] += 0.5
            job.update(pairs=i * 10, loss=0.123456)
    line = "prepare: 100% 5/5 [00:02<00:00,  2.00shard/s, pairs=40, loss=0.1235]\n"
    assert log.getvalue() == line


def test_a_line_that_stays_is_in_a_log_at_once_and_above_the_bar_of_a_terminal(clock):
    log, terminal, hidden = io.StringIO(), Terminal(), io.StringIO()
    for stream, shown in ((log, True), (terminal, True), (hidden, False)):
        with Progress(4, "train", stream=stream, shown=shown) as job:
            job.update(2)
            job.say("step 2: validation_loss 3.1")
            job.update(2)
    assert log.getvalue().splitlines()[0] == "step 2: validation_loss 3.1"
    # The bar is wiped before the line, which is whole, and drawn again below it.
    _, after = re.split(r"\r *\rstep 2: validation_loss 3.1\n", terminal.getvalue())
    assert "train:" in after
    assert hidden.getvalue() == ""


def test_log_is_written_every_ten_seconds(clock):
    log = io.StringIO()
    job = Progress(100, "train", stream=log)
    for _ in range(60):  # two minutes at 2 s a step
        clock[0] += 2.0
        job.update()
    job.close()
    lines = log.getvalue().splitlines()
    assert len(lines) == 12
    assert lines[0] == "train:   5% 5/100 [00:10<03:10,  2.00s/step]"
    assert lines[-1] == "train:  60% 60/100 [02:00<01:20,  2.00s/step]"


def test_rate_forgets_the_first_unit_and_what_a_resumed_run_had_done(clock):
    log = io.StringIO()
    job = Progress(1000, "train", start=500, stream=log)
    clock[0] += 60.0  # compiling
    job.update()
    for _ in range(10):
        clock[0] += 0.25
        job.update()
    job.close()
    assert log.getvalue().splitlines() == [
        "train:  50% 501/1000 [01:00<8:19:00, 60.00s/step]",
        "train:  51% 511/1000 [01:02<02:02,  4.00step/s]",
    ]


def test_what_comes_after_the_last_unit_does_not_slow_the_units_down(clock):
    log = io.StringIO()
    job = Progress(5, "train", stream=log)
    for _ in range(4):
        clock[0] += 2.0
        job.update()
    clock[0] += 2.0
    job.reach(5)
    clock[0] += 100.0  # drawing samples, writing the bundle
    job.reach(5, samples=8)
    job.close()
    assert log.getvalue().splitlines()[-1] == (
        "train: 100% 5/5 [01:50<00:00,  2.00s/step, samples=8]"
    )


def test_slow_units_are_counted_by_the_minute(clock):
    log = io.StringIO()
    job = Progress(10, "sample", unit="image", stream=log, per_minute=True)
    for _ in range(3):
        clock[0] += 12.0
        job.update()
    job.close()
    assert log.getvalue().splitlines()[-1] == "sample:  30% 3/10 [00:36<01:24, 5.00image/min]"


def test_long_times_are_days_and_hours(clock):
    log = io.StringIO()
    job = Progress(2001, "train", stream=log)
    clock[0] += 3 * 3600
    job.update()
    assert log.getvalue() == "train:   0% 1/2001 [3:00:00<250d 0h, 10800.00s/step]\n"
    clock[0] += 23 * 3600
    job.update()
    job.close()
    assert "[1d 2h<" in log.getvalue().splitlines()[-1]


def test_terminal_line_overwrites_itself_and_fits(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "41")
    screen = Terminal()
    job = Progress(3, "train", stream=screen)  # without the thread that reports every second
    for _ in range(3):
        clock[0] += 0.11
        job.update(note="x" * 100)
    job.close()
    text = screen.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    frames = text.rstrip("\n").split("\r")[1:]
    assert all(len(frame) <= 40 for frame in frames)
    shown = [re.match(r"train: +(\d+)%\|.*\| (\d)/3 \[00:00<", frame) for frame in frames]
    assert [match.groups() for match in shown][:3] == [("33", "1"), ("67", "2"), ("100", "3")]


def test_a_bar_within_another_has_a_line_of_its_own(clock):
    screen = Terminal()
    with Progress(2, "outer", stream=screen) as outer:
        clock[0] += 1.0
        outer.update()
        with Progress(2, "inner", stream=screen) as inner:
            clock[0] += 1.0
            inner.update(2)
        clock[0] += 1.0
        outer.update()
    assert "\n\rinner: 100%" in screen.getvalue()
    assert "\x1b[A" in screen.getvalue()  # back up to the outer one


def test_processes_that_leave_the_talking_to_another_say_nothing_and_count(clock):
    log = io.StringIO()
    with Progress(3, "train", stream=log, shown=False) as job:
        for _ in range(3):
            clock[0] += 20.0
            job.update(loss=1.0)
    assert (job.done, log.getvalue()) == (3, "")


def test_units_of_many_threads_are_all_counted():
    log = io.StringIO()
    with Progress(8000, "read", stream=log) as job, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: [job.update() for _ in range(1000)], range(8)))
    assert job.done == 8000
    assert log.getvalue().splitlines()[-1].startswith("read: 100% 8000/8000 [00:")


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
            r"train:   0% 0/9 \[\d\d:\d\d<\?, \?step/s, compiling\]\n",
            log.getvalue().splitlines(True)[0],
        )
        log.written.clear()
        assert log.written.wait(300)
        assert re.fullmatch(
            r"train:  33% 3/9 \[\d\d:\d\d<00:\d\d, .*, loss=2.5\]\n",
            log.getvalue().splitlines(True)[1],
        )
        job.reach(3, loss=2.0)  # a log point that says nothing new of the count
        assert job.done == 3
        job.reach(9)
    assert log.getvalue().splitlines()[-1].startswith("train: 100% 9/9 [")


def test_what_is_waited_for_is_said(monkeypatch, capsys):
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    with progress.waiting("loading the bundle"):
        deadline, said = time.monotonic() + 300, ""
        while not said and time.monotonic() < deadline:
            said = capsys.readouterr().err
    assert re.match(r"loading the bundle, \d\d:\d\d so far\n", said)
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
