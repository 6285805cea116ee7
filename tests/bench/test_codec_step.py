"""The comparison of image tokenizers' training steps, at tiny sizes and without a peer."""

import importlib.util
import json
import sys

import pytest

from bench import codec_step


def run(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["codec_step", "--small", "--repeats", "2", *flags])
    codec_step.main()


def test_the_command_prints_a_row_of_each_model(monkeypatch, tmp_path, capsys):
    out = tmp_path / "results.json"
    run(monkeypatch, "--out", str(out))
    printed = capsys.readouterr().out.splitlines()
    assert [line[:18].strip() for line in printed] == ["", "vqgan, this build", "vqvae, this build"]
    for row in json.loads(out.read_text()):
        assert len(row["seconds"]) == 2
        assert row["ratio"] == 1
        assert row["peak_memory"] > 2**26
    # By hand: encoder 3-8-8-8 of 4x4 and 1x1 to width 256, its mirror, and 1x1 to pixels.
    encoder = 16 * (3 * 8 + 8 * 8 + 8 * 8) + 3 * 8 + 8 * 256 + 256
    decoder = 16 * (256 * 8 + 8 * 8 + 8 * 8) + 3 * 8 + 8 * 3 + 3
    assert row["parameters"] == encoder + decoder


@pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is not None, reason="diffusers is installed here"
)
def test_an_interpreter_without_diffusers_is_told_how_to_install_it(monkeypatch, tmp_path, capfd):
    with pytest.raises(SystemExit):
        run(
            monkeypatch,
            *("--only", "vqgan", "--peer", sys.executable, "--out", str(tmp_path / "x.json")),
        )
    assert "pip install torch diffusers" in capfd.readouterr().err
