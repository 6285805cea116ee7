"""Who writes the report of an evaluation that several processes share, and who deletes its rows."""

import contextlib

import pytest

from cogview_jax.evaluation import unfinished
from cogview_jax.evaluation.benchmark import Options, load_benchmark
from cogview_jax.evaluation.report import evaluate
from cogview_jax.evaluation.unfinished import Unfinished
from cogview_jax.runtime import leftovers
from cogview_jax.runtime.errors import InputError

JOB = {"benchmark": "fid", "seed": 0}


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(unfinished, "PATIENCE", 0.02)
    monkeypatch.setattr(unfinished, "MOMENT", 0.02)
    monkeypatch.setattr(unfinished, "PAUSE", 0.01)


@pytest.fixture
def part(tmp_path):
    """What a process knows of the evaluation."""
    return lambda job=JOB: Unfinished(str(tmp_path / "r.json"), job)


@pytest.fixture
def taking():
    """Several that take part at a time, each until its own end."""
    with contextlib.ExitStack() as stack:

        def join(one, process=None):
            own = stack.enter_context(contextlib.ExitStack())
            return own, own.enter_context(one.joined(process, shared=True))

        yield join


def compute(one):
    (one.folder / "set").mkdir(exist_ok=True)
    (one.folder / "set" / "rows-00000.rows").write_bytes(b"rows")


@pytest.mark.parametrize("last", ["the first", "another"])
def test_the_first_writes_the_report_and_who_leaves_last_deletes_the_rows(part, taking, last):
    one = part()
    first, reports = taking(one)
    compute(one)
    other, helps = taking(part())
    assert (reports, helps) == (True, False)
    if last == "the first":
        other.close()
        assert one.folder.exists()
        one.written()
        first.close()
    else:
        one.written()
        first.close()
        assert one.folder.exists()
        other.close()
    assert not one.folder.exists()


def test_who_comes_while_rows_are_deleted_takes_no_part(part, taking, tmp_path, monkeypatch):
    one = part()
    first, _ = taking(one)
    compute(one)
    one.written()
    found = []

    def half_deleted(folder, **_):
        (folder / ".written").unlink()
        found.append(taking(part(), 1)[1])

    monkeypatch.setattr(unfinished.shutil, "rmtree", half_deleted)
    first.close()
    assert found == [None]
    assert not one.folder.exists()
    monkeypatch.undo()
    # What was left of it goes with the next one.
    monkeypatch.setattr(leftovers, "_start", lambda pid: None)
    assert taking(part())[1] is True
    assert not list(tmp_path.glob(".cogview-tmp-*"))


def test_process_0_of_a_launcher_writes_the_report(part, taking, tmp_path, capsys):
    assert taking(part(), 1)[1] is None  # nobody has begun
    assert "r.json is written, or not begun: there is nothing to do" in capsys.readouterr().err
    _, reports = taking(part(), 0)
    assert reports is True
    assert taking(part(), 1)[1] is False
    compute(part())
    part().written()
    assert taking(part(), 2)[1] is None  # it came late
    with pytest.raises(InputError, match=r"the report .*r\.json is in use by process .* --out"):
        taking(part(), 0)


def test_a_report_that_was_written_since_is_not_waited_for(part, taking, tmp_path, monkeypatch):
    monkeypatch.setattr(unfinished, "PATIENCE", 1e9)
    (tmp_path / "r.json").write_text("{}")
    assert taking(part(), 1)[1] is None
    assert not part().folder.exists()


def test_rows_stay_until_the_report_is_written_and_nothing_without_rows(part, taking):
    one = part()
    with pytest.raises(KeyboardInterrupt), one.joined(None, shared=True):
        raise KeyboardInterrupt
    assert not one.folder.exists()
    with pytest.raises(KeyboardInterrupt), one.joined(None, shared=True):
        compute(one)
        raise KeyboardInterrupt
    assert (one.folder / "set" / "rows-00000.rows").exists()
    # Another evaluation goes on with the rows that are its own, too: they say what they are of.
    with part({**JOB, "seed": 1}).joined(None, shared=True):
        assert (one.folder / "set" / "rows-00000.rows").exists()


def test_who_is_at_another_evaluation_takes_no_part(part, taking, monkeypatch):
    taking(part())
    with pytest.raises(InputError, match=r"another evaluation had measured \(of another seed\)"):
        taking(part({**JOB, "seed": 1}))


def test_rows_of_a_report_that_is_written_are_not_taken_for_new_ones(part, taking):
    """The last process was killed before it deleted them."""
    one = part()
    with pytest.raises(KeyboardInterrupt), one.joined(None, shared=True):
        compute(one)
        raise KeyboardInterrupt
    one.written()
    with one.joined(None, shared=True):
        assert not (one.folder / "set").exists()


def test_a_folder_of_something_else_is_left_alone(part):
    folder = part().folder
    folder.mkdir()
    (folder / "novel.txt").write_text("weeks")
    with (
        pytest.raises(InputError, match="is no unfinished evaluation: move it away"),
        part().joined(None, shared=True),
    ):
        pass
    assert (folder / "novel.txt").read_text() == "weeks"


def test_a_benchmark_that_one_process_computes_refuses_others(monkeypatch, tmp_path):
    place = {"COORDINATOR_ADDRESS": "localhost:1", "NUM_PROCESSES": "2", "PROCESS_ID": "1"}
    for name, value in place.items():
        monkeypatch.setenv(f"JAX_{name}", value)
    with pytest.raises(InputError, match="--benchmark shapes runs in one process, got 2"):
        evaluate(load_benchmark("shapes"), "bundle", str(tmp_path / "r.json"), Options())
