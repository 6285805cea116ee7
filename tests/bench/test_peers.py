"""The comparison with other libraries: its arithmetic, its arguments, and turns of tiny sizes."""

import importlib.util
import json
import sys

import pytest

from bench import peers

#: A peer that answers every line with the same times, whatever it is asked to measure.
ANSWER = {"seconds": 3.0, "processor": 6.0, "peak": 1e12, "processor_peak": 5e11}
PEER = f"""#!/bin/sh
echo '{{"versions": "a peer"}}'
while read -r line; do echo '{json.dumps(ANSWER)}'; done
"""


def run(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["peers", *flags])
    peers.main()


def answers(*times, peak, work=None):
    facts = {} if work is None else {"work": work}
    rates = {"peak": peak, "processor_peak": peak / 2}
    return [{"seconds": one, "processor": 2 * one} | rates | facts for one in times]


def test_shares_are_of_the_highest_peak_and_ratios_are_of_pairs():
    ours = answers(1.0, 2.0, 4.0, peak=50.0, work=40)
    peer = answers(3.0, 4.0, 4.0, peak=80.0)
    row = peers.compared(ours, peer)
    # 40 bytes take half a second at 80 a second; of the pairs' ratios 3, 2 and 1 the median is 2.
    assert row["ours"]["seconds"] == 1.0
    assert row["ours"]["seconds_share"] == 0.5
    assert row["peer"]["seconds_share"] == pytest.approx(0.5 / 3)
    assert row["ours"]["processor_share"] == 0.5
    assert (row["ours"]["peak"], row["peer"]["peak"]) == (50.0, 80.0)
    assert row["ratio"] == {"seconds": 2.0, "processor": 2.0}


def test_our_side_alone_has_no_ratio():
    row = peers.compared(answers(2.0, peak=10.0, work=10), [])
    assert row["ours"]["seconds_share"] == 0.5
    assert row["ratio"] == {}
    assert "peer" not in row


def test_both_sides_decode_in_turns(monkeypatch, tmp_path, capsys):
    peer, out = tmp_path / "python", tmp_path / "results.json"
    peer.write_text(PEER)
    peer.chmod(0o755)
    flags = ("--small", "--rounds", "2", "--batches", "3", "--peer_python", str(peer))
    run(monkeypatch, "decode", *flags, "--out", str(out))
    result = json.loads(out.read_text())
    assert [row["name"] for row in result["rows"]] == ["float32 3", "int8 3"]
    # By hand: 12 kernels of 64 x 64, a head of 128 ids, and keys and values of 8 tokens a row,
    # which in 8 bits have a scale of four bytes each.
    kernels, head, cached = 12 * 64 * 64, 128 * 64, 3 * 2 * 8
    work = [row["ours"]["answers"][0]["work"] for row in result["rows"]]
    assert work == [4 * (kernels + head + cached * 64), kernels + 4 * head + cached * (64 + 4)]
    for row in result["rows"]:
        times = [each["seconds"] for each in row["ours"]["answers"]]
        assert len(times) == 2
        assert row["ratio"]["seconds"] == pytest.approx((3 / times[0] + 3 / times[1]) / 2)
        assert row["peer"]["seconds_share"] == pytest.approx(
            row["ours"]["answers"][0]["work"] / 3e12
        )
    assert "a peer" in capsys.readouterr().out


@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is not None, reason="transformers is installed here"
)
def test_an_interpreter_without_the_peer_is_told_how_to_install_it(monkeypatch, capfd):
    with pytest.raises(SystemExit):
        run(monkeypatch, "decode", "--small", "--peer_python", sys.executable)
    assert "pip install torch transformers ctranslate2" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rounds", "0"], "--rounds 0: expected at least 1"),
        (["--top_k", "-1"], "--top_k -1: expected 0 or more"),
        (["--precisions", "float16"], "--precisions float16: choose from float32, int8"),
        (["--forms", "lazy"], "--forms lazy: choose from eager, compiled"),
        (["--context", "1058"], "--context 1058: expected 1 to 1057"),
        (["--batches", "1,none"], "--batches 1,none: expected numbers of rows, such as 1,4,16"),
        (["--peer_python", "nowhere"], "--peer_python nowhere: expected the path"),
    ],
)
def test_wrong_arguments_are_said(monkeypatch, capsys, flags, message):
    with pytest.raises(SystemExit):
        run(monkeypatch, "decode", *flags)
    assert message in capsys.readouterr().err
