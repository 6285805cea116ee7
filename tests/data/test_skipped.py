"""The log of skipped records: once a record, across restarts and threads, and its limit."""

import json
import threading
from pathlib import Path

import pytest

from cogview_jax.data.skipped import SkipCounts, Skipped, SkippedLog
from cogview_jax.runtime.errors import InputError


def lines(folder) -> list[dict]:
    text = (folder / "skipped.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_a_record_is_written_once_and_at_once(tmp_path):
    log = SkippedLog(tmp_path / "new")
    assert not log.path.exists()
    log.add("图/1.png", "unreadable")
    log.add("图/1.png", "unreadable")
    assert lines(tmp_path / "new") == [{"key": "图/1.png", "reason": "unreadable"}]
    log.add("2.png", "empty caption")
    assert [line["key"] for line in lines(tmp_path / "new")] == ["图/1.png", "2.png"]
    assert log.skipped == 2


def test_a_restart_writes_no_record_again_but_counts_anew(tmp_path):
    SkippedLog(tmp_path).add("1.png", "unreadable")
    log = SkippedLog(tmp_path)
    assert (log.seen, log.skipped) == (0, 0)
    log.see(1)
    log.add("1.png", "unreadable")
    log.add("2.png", "unreadable")
    assert [line["key"] for line in lines(tmp_path)] == ["1.png", "2.png"]
    assert log.skipped == 2


def test_half_a_line_of_a_killed_run_harms_no_other(tmp_path):
    SkippedLog(tmp_path).add("1.png", "unreadable")
    path = tmp_path / "skipped.jsonl"
    path.write_text(path.read_text() + '{"key": "2.p')
    log = SkippedLog(tmp_path)
    log.add("2.png", "unreadable")
    log.add("3.png", "unreadable")
    whole = [line for line in path.read_text().splitlines() if line.endswith("}")]
    assert [json.loads(line)["key"] for line in whole] == ["1.png", "2.png", "3.png"]
    assert SkippedLog(tmp_path)._written == {"1.png", "2.png", "3.png"}


def test_seen_counts_distinct_records(tmp_path):
    log = SkippedLog(tmp_path)
    for index in [5, 0, 5, 1000, 0]:
        log.see(index)
    assert log.seen == 3


def test_the_limit_is_a_share_of_distinct_records(tmp_path):
    log = SkippedLog(tmp_path, max_skipped=0.1, at_least=20)
    for index in range(20):
        log.see(index)
    for key in "ab":
        log.add(key, "unreadable")
    log.check()  # 2 of 20 is what is allowed
    for _ in range(100):  # meeting good records again does not thin out the bad ones
        log.see(3)
    log.add("c", "empty caption")
    with pytest.raises(InputError, match=r"3 of 20 .*15\.0%.*max_skipped=0\.1.*c: empty caption"):
        log.check()


def test_what_was_skipped_is_told_in_a_line(tmp_path):
    log = SkippedLog(tmp_path)
    log.see(0)
    assert log.describe() == ""
    log.see(1)
    log.add("b.png", "unreadable image")
    assert log.describe() == (
        "1 of the 2 records that were read could not be used and were replaced by others; the last"
        f" was b.png: unreadable image; all are in {tmp_path}/skipped.jsonl"
    )
    said = log.describe("process 0 of 2")
    assert said.startswith("1 of the 2 records that process 0 of 2 has read could not be used")


def listed():
    return Path("skipped.jsonl")


def test_few_records_are_judged_only_at_the_end():
    counts = SkipCounts()
    for index in range(19):
        counts.add(1, [Skipped(str(index), "unreadable")])
        counts.check(0.05, listed)
    with pytest.raises(InputError, match=r"19 of 19 .* the last was 18: unreadable; all are in sk"):
        counts.check_all(0.05, listed)


def test_views_of_a_record_count_once():
    counts = SkipCounts(views=3)
    counts.add(58, ())
    counts.add(2, [Skipped("a.png", "unreadable")] * 2)  # the third view is in another shard
    with pytest.raises(InputError, match=r"1 of 20 records could not be used \(3\.3%\)"):
        counts.check(0.03, listed)
    counts.check(0.04, listed)


def test_a_run_that_met_nothing_is_fine():
    SkipCounts().check_all(0.0, listed)


def test_many_threads_write_whole_lines_once(tmp_path):
    log = SkippedLog(tmp_path)

    def work():
        for i in range(50):
            log.see(i)
            log.add(f"{i}.png", "unreadable " * 20)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(line["key"] for line in lines(tmp_path)) == sorted(f"{i}.png" for i in range(50))
    assert log.seen == log.skipped == 50


@pytest.mark.parametrize("share", [-0.1, 1.1, 5.0])
def test_a_limit_that_is_no_share_is_refused(tmp_path, share):
    with pytest.raises(InputError, match=f"max_skipped={share}"):
        SkippedLog(tmp_path, max_skipped=share)


DEEP = b"[" * 100_000
DAMAGED = [b"[]", b"3", b'{"key": [1]}', b'{"reason": "x"}', b"\xff\xfe", b'{"key', DEEP]


def test_damaged_lines_stop_no_run_and_are_said(tmp_path, capsys):
    SkippedLog(tmp_path).add("1.png", "unreadable")
    path = tmp_path / "skipped.jsonl"
    before = path.read_bytes() + b"".join(line + b"\n" for line in DAMAGED)
    path.write_bytes(before)
    log = SkippedLog(tmp_path)
    log.add("1.png", "unreadable")
    log.add("2.png", "unreadable")
    assert path.read_bytes() == before + b'{"key": "2.png", "reason": "unreadable"}\n'
    said = capsys.readouterr().err.splitlines()
    assert said == [f"{path}: 7 of its 8 lines are damaged, and passed over"]


def test_what_is_no_log_is_set_aside(tmp_path, capsys):
    (tmp_path / "skipped.jsonl").mkdir()
    (tmp_path / "skipped.jsonl.damaged").write_text("of before")
    SkippedLog(tmp_path).add("1.png", "unreadable")
    assert [line["key"] for line in lines(tmp_path)] == ["1.png"]
    assert (tmp_path / "skipped.jsonl.damaged-2").is_dir()
    assert "moved to skipped.jsonl.damaged-2, and begun anew" in capsys.readouterr().err


def test_a_log_that_cannot_be_written_stops_no_run(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    log = SkippedLog(tmp_path / "file" / "folder")
    log.add("1.png", "unreadable")
    log.add("2.png", "unreadable")
    assert log.skipped == 2
    (said,) = capsys.readouterr().err.splitlines()[-1:]
    assert said.endswith("what is skipped is counted, not listed")
