"""The log of skipped records: once a record, across restarts and threads, and its limit."""

import json
import threading

import pytest

from cogview_jax.data.skipped import SkippedLog
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


def test_few_records_are_judged_only_at_the_end(tmp_path):
    log = SkippedLog(tmp_path, max_skipped=0.05, at_least=20)
    for index in range(19):
        log.see(index)
        log.add(str(index), "unreadable")
        log.check()
    with pytest.raises(InputError, match="19 of 19"):
        log.check(final=True)


def test_a_run_that_met_nothing_is_fine(tmp_path):
    SkippedLog(tmp_path, max_skipped=0.0).check(final=True)


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


def test_lines_that_are_damaged_stop_no_run(tmp_path):
    log = SkippedLog(tmp_path)
    log.add("1.png", "unreadable")
    odd = [b"[]", b"7", b"{}", b'{"key": [1]}', b"\xff", b"[" * 99_999, b'{"key": "2.png"}', b"{"]
    with log.path.open("ab") as file:
        file.write(b"\n".join(odd))
    log = SkippedLog(tmp_path)
    for key in ("1.png", "2.png", "3.png"):
        log.add(key, "unreadable")
    whole = log.path.read_bytes().split(b"\n")
    assert whole[0] == b'{"key": "1.png", "reason": "unreadable"}'
    assert whole[1:-2] == odd
    assert whole[-2:] == [b'{"key": "3.png", "reason": "unreadable"}', b""]


def test_a_log_that_cannot_be_read_or_written_is_said_once(tmp_path, capfd):
    (tmp_path / "skipped.jsonl").mkdir()
    log = SkippedLog(tmp_path, max_skipped=0.1)
    for index in range(30):
        log.see(index)
        log.add(f"{index}.png", "unreadable")
    (line,) = capfd.readouterr().err.splitlines()
    assert "skipped.jsonl cannot be read" in line
    with pytest.raises(InputError, match="30 of 30 records"):
        log.check()


def test_a_full_disk_costs_lines_and_no_run(tmp_path, capfd):
    log = SkippedLog(tmp_path)
    (tmp_path / "skipped.jsonl").symlink_to("/dev/full")
    log.add("1.png", "unreadable")
    log.add("2.png", "unreadable")
    (line,) = capfd.readouterr().err.splitlines()
    assert "skipped.jsonl cannot be written (No space left on device): going on" in line
    (tmp_path / "skipped.jsonl").unlink()
    log.add("2.png", "unreadable")
    assert [line["key"] for line in lines(tmp_path)] == ["2.png"]
    assert log.skipped == 2


def test_any_key_can_be_written(tmp_path):
    log = SkippedLog(tmp_path)
    log.add("\udcff\n.png", "a\ud800")
    assert lines(tmp_path) == [{"key": "\\udcff\\n.png", "reason": "a\\ud800"}]
    SkippedLog(tmp_path).add("\udcff\n.png", "a\ud800")
    assert len(lines(tmp_path)) == 1
