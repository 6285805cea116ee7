"""The dry run as a user runs it: more devices than there are, no data, no workdir."""

import re

import pytest

from command_runs import call

LARGE = ("--config=configs/cogview_4b.py", "--dry_run", "--config.train.steps=10")


def test_the_4b_model_on_64_devices(root):
    result = call(
        root,
        "train",
        *LARGE,
        *("--devices=64", "--accelerator=H100", "--config.train.global_batch=256"),
    )
    assert result.returncode == 0, result.stderr
    said = result.stdout
    assert (
        "64 devices, mesh data 1, fsdp 64, tensor 1; 256 rows a step in 1 parts; bfloat16" in said
    )
    # Twelve bytes a parameter, in 64 parts; positions and biases are whole.
    held = {
        name.strip(): float(size)
        for name, size in re.findall(r"^  ([a-z][^0-9]*?)\s+(\d+\.\d+)$", said, re.MULTILINE)
    }
    assert held["parameters"] == pytest.approx(3.93e9 * 4 / 64 / 1e9, rel=0.05)
    assert held["optimizer (and codebook)"] == pytest.approx(2 * held["parameters"], rel=0.01)
    assert held["total (estimate, rather high)"] == pytest.approx(
        sum(held[name] for name in held if "total" not in name), abs=0.01
    )
    assert "all-gather of 64" in said
    assert re.search(r"of which 2\d% is rematerialisation", said)
    assert re.search(r"^fits: \d+\.\d of 80\.7 GB that a H100 leaves", said, re.MULTILINE)


def test_a_step_that_an_h200_was_seen_to_hold_may_fit(root):
    """16 rows took 113 of its 151 GB; how much more a CPU's compiler would take depends on it."""
    flags = ("--devices=1", "--accelerator=H200", "--config.train.global_batch=16")
    result = call(root, "train", *LARGE, *flags, "--config.model.remat=dots")
    assert result.returncode == 0, result.stderr
    assert re.search(r"^(fits|may fit): ", result.stdout, re.MULTILINE)
    lines = re.findall(r"^  ([a-z][^0-9]*?)\s+(\d+\.\d+)$", result.stdout, re.MULTILINE)
    held = {name.strip(): float(size) for name, size in lines}
    certain = held["total (estimate, rather high)"] - held["temporaries (estimate)"]
    assert certain == pytest.approx(112.5, rel=0.05)


def test_what_does_not_fit_is_told_what_to_change(root):
    result = call(
        root, "train", *LARGE, "--devices=1", "--accelerator=V100", "--config.train.global_batch=1"
    )
    assert result.returncode == 0, result.stderr
    assert "does NOT fit" in result.stdout
    assert "alone are too large: raise mesh.fsdp or tensor" in result.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--accelerator=H300",), "accelerator 'H300' is unknown; choose from"),
        (("--devices=3", "--config.train.global_batch=4"), "cannot be split over mesh.data x"),
        (("--config.mesh.data=2", "--config.mesh.fsdp=3", "--devices=4"), "needs 6 devices, but"),
        ((), "--workdir TEXT is missing"),
    ],
)
def test_what_does_not_fit_together_is_refused(root, flags, message):
    dry = ("--dry_run",) if flags else ()
    result = call(root, "train", "--config=configs/demo_codec.py", *dry, *flags)
    assert result.returncode == 2
    assert message in result.stderr
