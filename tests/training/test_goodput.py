"""The ledger adds up to the wall time, also over restarts."""

import json

import pytest

from cogview_jax.training.goodput import Goodput


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def pass_by(self, seconds):
        self.now += seconds


def first_start(path, clock):
    """Ten steps of 2 s, with a checkpoint of 3 s, half of which is spent in a report."""
    goodput = Goodput(path, clock=clock)
    clock.pass_by(4)
    with goodput.phase("restore"):
        clock.pass_by(1)
    goodput.enter("compile")
    clock.pass_by(7)
    goodput.enter("step")
    clock.pass_by(20)
    with goodput.phase("checkpoint"):
        clock.pass_by(2)
        with goodput.phase("report"):
            clock.pass_by(1)
    goodput.record(10, 2.0)
    return goodput


def test_every_second_has_one_name(tmp_path):
    goodput = first_start(tmp_path / "goodput.json", Clock())
    assert goodput.seconds == {
        "start": 4,
        "restore": 1,
        "compile": 7,
        "step": 20,
        "checkpoint": 2,
        "report": 1,
    }
    assert goodput.share == pytest.approx(20 / 35)
    written = json.loads((tmp_path / "goodput.json").read_text())
    assert written["goodput"] == pytest.approx(20 / 35)
    assert written["position"] == 10
    assert goodput.summary() == (
        "goodput 57.1% of 35 s; compile 20.0%, start 11.4%, checkpoint 5.7%, restore 2.9%, report"
        " 2.9%"
    )


def test_steps_done_again_are_lost_and_the_time_between_starts_is_down(tmp_path):
    clock = Clock()
    first_start(tmp_path / "goodput.json", clock)
    clock.pass_by(30)  # of which 6 may have been steps nobody wrote down
    goodput = Goodput(tmp_path / "goodput.json", clock=clock)
    goodput.resume(7)  # three steps of 2 s are to be done again
    clock.pass_by(5)
    goodput.enter("step")
    clock.pass_by(6)
    goodput.record(10, 2.0)
    assert goodput.seconds == {
        "start": 4 + 5,
        "restore": 1,
        "compile": 7,
        "step": 20 - 6 + 6,
        "checkpoint": 2,
        "report": 1,
        "lost": 6,
        "down": 30,
    }
    assert sum(goodput.seconds.values()) == clock.now - 1000


WHOLE = {"goodput": 1.0, "position": 1, "seconds_per_step": 1.0, "at": 1.0, "seconds": {}}
DAMAGED = [
    *("", "{", "[]", '{"seconds": {"step": 1.0}}', "[" * 100_000),
    *(json.dumps(WHOLE | {"seconds": seconds}) for seconds in ([], {"step": "1"}, {"step": 1e999})),
    *(json.dumps(WHOLE | changes) for changes in ({"at": None}, {"position": 1.5})),
]


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_a_broken_ledger_is_begun_anew(tmp_path, text, capsys):
    (tmp_path / "goodput.json").write_text(text)
    goodput = Goodput(tmp_path / "goodput.json", clock=Clock())
    assert (tmp_path / "goodput.json.damaged").read_text() == text
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"{tmp_path / 'goodput.json'}: ")
    assert goodput.seconds == {}
    goodput.resume(0)
    goodput.record(0, 0.0)
    assert json.loads((tmp_path / "goodput.json").read_text())["seconds"]["start"] == 0


def test_only_the_process_that_writes_writes(tmp_path):
    Goodput(tmp_path / "goodput.json", clock=Clock(), writes=False).record(1, 1.0)
    assert list(tmp_path.iterdir()) == []


def test_ledgers_of_earlier_versions_called_previews_draw(tmp_path):
    goodput = first_start(tmp_path / "goodput.json", clock := Clock())
    seconds = goodput.seconds | {"draw": 5.0}
    ledger = json.loads((tmp_path / "goodput.json").read_text()) | {"seconds": seconds}
    (tmp_path / "goodput.json").write_text(json.dumps(ledger))
    again = Goodput(tmp_path / "goodput.json", clock=clock)
    with again.phase("preview"):
        clock.pass_by(2)
    assert again.seconds["preview"] == 7
    assert "draw" not in again.seconds
