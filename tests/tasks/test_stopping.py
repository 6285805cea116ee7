"""SIGTERM to a run of one process: it saves, says so, and goes on later; runs of several: bench."""

import json
import re
import signal

from command_runs import call
from processes import Processes


def test_a_run_that_is_asked_to_stop_saves_and_goes_on_from_there(root, chain, tmp_path):
    steps = ("--config.train.steps=100000", "--config.train.checkpoint_every=200000")
    arguments = [a for a in chain.train_codec("codec") if "train." not in a]
    arguments += ["--config.train.global_batch=8", "--config.train.log_every=1"]
    arguments += ["--config.train.sample_every=0", f"--workdir={tmp_path / 'run'}"]
    metrics = tmp_path / "run" / "metrics" / "metrics.jsonl"

    def lines():
        return metrics.read_text().splitlines() if metrics.exists() else []

    with Processes(root, ["-m", "cogview_jax.train", *arguments, *steps], 1, 1) as started:
        started.wait_until(lambda: len(lines()) > 20)
        started.all[0].send_signal(signal.SIGTERM)
        assert started.statuses() == [75]
        said = re.search(
            r"asked to stop after step (\d+) of 100000, which is saved", started.output(0)
        )
    step = int(said[1])
    assert json.loads(lines()[-1])["step"] == step
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [str(step)]

    result = call(root, "train", *arguments, f"--config.train.steps={step + 5}")
    assert result.returncode == 0, result.stderr
    assert f"continues after step {step} of {step + 5}" in result.stderr
    assert [json.loads(line)["step"] for line in lines()] == list(range(1, step + 6))
