"""The page of speeds: cells from files of which every number is known, and what it runs."""

import json
import sys

import pytest

from bench import page

PEER = {"seconds": 3.0, "seconds_share": 0.2, "processor": 5.0}
OURS = {"seconds": 1.5, "seconds_share": 0.4, "processor": 2.0}
FOUND = {
    "peers_train": {
        "rows": [{"name": "eager", "ours": OURS, "peer": PEER, "ratio": {"seconds": 2}}]
    },
    "peers_decode": {
        "rows": [
            {"name": "float32 4", "ours": OURS | {"seconds": 0.0123}, "ratio": {}},
            {"name": "int8 4", "ours": OURS | {"seconds": 0.006}, "ratio": {}},
        ]
    },
    "against_train_step": {"step_seconds": {"before": 3.75, "now": 1.5, "ratio": 0.4}},
    "against_decode": {
        "rows.0.seconds": {"before": 0.009, "now": 0.009, "ratio": 1.0},
        "rows.1.seconds": {"before": 0.0246, "now": 0.0123, "ratio": 0.5},
        "rows.2.seconds": {"before": 0.01, "now": 0.02, "ratio": 2.0},
    },
    "first_seconds": {"warm": {"wall": 0.9, "cpu": 1.0, "before": 1.8, "ratio": 0.5}},
}


def test_every_number_stands_beside_what_it_is_compared_with():
    peers = [
        ("training step with AdamW, peer eager", "1.50 s", "40%", "", "", "3.00 s", "2.00"),
        ("a token for each of 4 rows, float32", "12.3 ms", "40%", "", "", "", ""),
        ("a token for each of 4 rows, int8", "6.0 ms", "40%", "", "", "", ""),
    ]
    assert [*page.rows(FOUND, True)] == [
        *peers,
        ("gradients of a training step", "1.50 s", "", "3.75 s", "2.50", "", ""),
        ("a token for each of 1 rows, float32", "9.0 ms", "", "9.0 ms", "1.00", "", ""),
        ("a token for each of 4 rows, float32", "12.3 ms", "", "24.6 ms", "2.00", "", ""),
        ("a token for each of 16 rows, float32", "20.0 ms", "", "10.0 ms", "0.50", "", ""),
        ("`cogview sample`, warm", "900.0 ms", "", "1.80 s", "2.00", "", ""),
    ]
    assert [*page.rows(FOUND, False)][:-1] == peers
    alone = {"rows": [{"name": name, "ours": OURS, "ratio": {}} for name in ("eager", "compiled")]}
    first, second, *_ = page.rows(FOUND | {"peers_train": alone}, False)
    assert (first[0], second[0]) == ("training step with AdamW", peers[1][0])


def test_it_runs_each_benchmark_and_prints_one_table(tmp_path, monkeypatch, capsys):
    ran = []

    def run(name, *arguments):
        ran.append((name, arguments[:1]))
        for each, content in FOUND.items():
            (tmp_path / f"{each}.json").write_text(json.dumps(content))

    monkeypatch.setattr(page, "RESULTS", tmp_path)
    monkeypatch.setattr(page, "run", run)
    monkeypatch.setattr(sys, "argv", ["page", "--rounds", "1"])
    page.main()
    assert ran == [
        ("bench.peers", ("train",)),
        ("bench.peers", ("decode",)),
        ("bench.first_seconds", ("--rounds",)),
    ]
    said = capsys.readouterr().out
    assert said.startswith("|  | ours | share of the limit |")
    assert (tmp_path / "page.md").read_text() == said.removesuffix("\n")
    monkeypatch.setattr(sys, "argv", ["page", "--rounds", "0"])
    with pytest.raises(SystemExit):
        page.main()
    assert "--rounds 0: expected at least 1" in capsys.readouterr().err
