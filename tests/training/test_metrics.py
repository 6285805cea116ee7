"""The record of a resumed run is the record of the unbroken one."""

import json
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from tensorboardX.record_writer import masked_crc32c

from cogview_jax.training.metrics import MetricsWriter


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def events(directory):
    """Every event in the folder, read from the TFRecord framing."""
    found = []
    for path in sorted(directory.glob("events.*")):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            payload = data[12 : 12 + size]
            assert int.from_bytes(data[12 + size : 16 + size], "little") == masked_crc32c(payload)
            found.append(Event.FromString(payload))
            data = data[16 + size :]
    return found


def test_lines_are_there_at_once_and_are_json(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics")
    values = {"loss": jnp.float32(1.5), "lr": np.float64(1e-4), "skipped": 2, "mfu": float("nan")}
    writer.scalars(np.int64(10), values | {"grad_norm": jnp.inf})
    expected = {"step": 10, "loss": 1.5, "lr": 1e-4, "skipped": 2, "mfu": None, "grad_norm": None}
    assert lines(tmp_path / "metrics") == [expected]
    writer.close()


def test_resumed_equals_unbroken(tmp_path):
    def run(directory, steps):
        with MetricsWriter(directory) as writer:
            for step in steps:
                writer.scalars(step, {"loss": 1 / step})

    run(tmp_path / "whole", range(10, 70, 10))
    run(tmp_path / "broken", range(10, 50, 10))
    with (tmp_path / "broken" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "lo')  # killed here; the last checkpoint was at 25
    run(tmp_path / "broken", range(30, 70, 10))
    whole = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert (tmp_path / "broken" / "metrics.jsonl").read_bytes() == whole
    assert not list((tmp_path / "broken").glob(".tmp*"))
    starts = [e.step for e in events(tmp_path / "broken") if e.HasField("session_log")]
    assert starts[-1] == 30


def test_events_hold_scalars_and_images(tmp_path):
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    with MetricsWriter(tmp_path) as writer:
        writer.scalars(3, {"loss": 0.25})
        writer.images(3, "samples", pixels)
    values = {v.tag: (e.step, v) for e in events(tmp_path) for v in e.summary.value}
    assert values["loss"][0] == 3
    assert values["loss"][1].simple_value == 0.25
    image = values["samples"][1].image
    assert (image.height, image.width) == (4, 5)
    assert image.encoded_image_string.startswith(b"\x89PNG")


def test_every_start_shows_texts_and_settings(tmp_path):
    """As TensorBoard's pages TEXT and HPARAMS read them, in the events of the run itself."""
    settings = {"train.steps": 12, "precision": "float32", "model.bias": True, "data.text": None}
    settings |= {"optimizer.betas": [0.9, 0.95]}
    for steps in ((4, 8), (8, 12)):
        with MetricsWriter(
            tmp_path, texts={"config": "# caf\u00e9"}, settings=settings, results=("loss",)
        ) as writer:
            assert not list(tmp_path.glob("events.*")) or steps[0] == 8
            for step in steps:
                writer.scalars(step, {"loss": 0.5})
    found = {}
    for event in events(tmp_path):
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value))
    assert [step for step, _ in found["config/text_summary"]] == [4, 8]
    text = found["config/text_summary"][1][1]
    assert text.metadata.plugin_data.plugin_name == "text"
    assert text.tensor.string_val[0].decode() == "# caf\u00e9"
    (_, began), (_, again) = found["_hparams_/session_start_info"]
    assert began == again
    start = HParamsPluginData.FromString(began.metadata.plugin_data.content).session_start_info
    given = {name: value.WhichOneof("kind") for name, value in start.hparams.items()}
    kinds = {"train.steps": "number_value", "precision": "string_value", "model.bias": "bool_value"}
    assert given == kinds | {"optimizer.betas": "string_value"}
    assert start.hparams["train.steps"].number_value == 12
    assert start.hparams["optimizer.betas"].string_value == "[0.9, 0.95]"
    about = found["_hparams_/experiment"][0][1].metadata.plugin_data
    assert about.plugin_name == "hparams"
    experiment = HParamsPluginData.FromString(about.content).experiment
    assert [metric.name.tag for metric in experiment.metric_infos] == ["loss"]
    assert {info.name for info in experiment.hparam_infos} == set(given)


FULL = """
import resource, sys
from cogview_jax.training.metrics import MetricsWriter

_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
failed = []
others = {f"metric_{i}": 1 / 3 for i in range(12)}  # lines as long as those of a run
with MetricsWriter(sys.argv[1]) as writer:
    for step in range(1, 91):
        full = step < 5 or 20 <= step < 80 or step == 90
        resource.setrlimit(resource.RLIMIT_FSIZE, (100 if full else most, most))
        try:
            writer.scalars(step, {"loss": 1 / step} | others)
        except OSError:
            failed.append(step)
print(failed)
"""


def test_a_full_disk_costs_time_and_nothing_else(tmp_path, root):
    """Files may not grow beyond 100 bytes for a while, which is what a full disk is to a writer."""
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=300)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [*range(1, 5), *range(20, 80), 90]
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text.count("\n") == 89
    steps = [json.loads(line)["step"] for line in text.splitlines()[:89]]
    assert steps == list(range(1, 90))
    found = [e.step for e in events(tmp_path) for v in e.summary.value if v.tag == "loss"]
    assert found == list(range(1, 90))


def test_where_no_file_can_be_made_nothing_is_lost(tmp_path):
    folder = tmp_path / "metrics"
    folder.write_text("no folder can be made here yet")
    with MetricsWriter(folder) as writer:
        for step in (1, 2):
            with pytest.raises(OSError, match="exists"):
                writer.scalars(step, {"loss": step})
        folder.unlink()
        writer.scalars(3, {"loss": 3})
    assert [line["step"] for line in lines(folder)] == [1, 2, 3]
    assert [e.step for e in events(folder) if e.HasField("summary")] == [1, 2, 3]


def test_damaged_lines_are_set_aside_and_the_good_ones_stay(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    good = [b'{"step": 1, "loss": 1.0}', b'{"step": 2, "loss": 0.5}']
    deep = b"[" * 100_000
    damaged = [b"[]", b'{"loss": 1}', b'{"step": "3"}', b"\xff", b'{"step": 1', deep, b""]
    whole = b"".join(line + b"\n" for line in (good[0], *damaged, good[1]))
    path.write_bytes(whole)
    with MetricsWriter(tmp_path) as writer:
        writer.scalars(3, {"loss": 0.25})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == whole
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"{path}: 7 of its 9 lines are damaged: moved to metrics.jsonl.damaged")


def test_what_is_no_log_of_metrics_is_set_aside(tmp_path, capsys):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with MetricsWriter(tmp_path) as writer:
        writer.scalars(3, {"loss": 0.25})
    assert [line["step"] for line in lines(tmp_path)] == [3]
    assert "expected a file, but this is a pipe: moved to" in capsys.readouterr().err
