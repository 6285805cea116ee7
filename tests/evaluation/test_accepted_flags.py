"""Flags that a benchmark would not use are refused, and the line says which it takes."""

import pytest
from absl import flags

import cogview_jax.commands.evaluate as command
from cogview_jax.evaluation.accepted_flags import OF_BENCHMARKS, check_flags
from cogview_jax.evaluation.benchmark import available, load_benchmark
from cogview_jax.runtime.errors import InputError
from command_runs import call

#: Flags of the command that say what is measured and where it is written.
OTHERS = {"bundle", "out", "benchmark", "list_features"}


@pytest.mark.parametrize(
    ("benchmark", "given", "features", "message"),
    [
        ("emoji", ["prompt"], (), "--benchmark emoji takes no --prompt: it takes --num_prompts, "),
        ("shapes", ["features", "blur"], ("lpips",), "takes no --features, --blur: it takes --num"),
        ("fid", ["num_prompts"], (), "--benchmark fid takes no --num_prompts: it takes --seed, "),
        (
            *("pictures", ["features"], ("inception", "lpips")),
            "--benchmark pictures measures nothing by --features lpips: it takes inception,"
            " efficientnet_lite0",
        ),
        ("tokenizer", ["features"], ("clip",), "by --features clip: it takes inception, "),
        ("emoji", ["features"], ("incepton",), "by --features incepton: it takes inception, "),
    ],
)
def test_what_would_do_nothing_is_refused(benchmark, given, features, message):
    with pytest.raises(InputError) as raised:
        check_flags(load_benchmark(benchmark), given, features)
    assert message in str(raised.value)


def test_what_is_used_passes():
    check_flags(load_benchmark("emoji"), ["features", "num_prompts"], ("lpips",))
    check_flags(load_benchmark("fid"), ["real", "blur", "features"], ("inception", "clip"))
    check_flags(load_benchmark("attention"), ["prompt", "seed"], ())


def test_every_flag_of_the_command_is_of_some_benchmark():
    """So that a new flag, or a misspelt name, cannot be forgotten."""
    own = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(command.__name__)}
    assert own == OTHERS | set(OF_BENCHMARKS)
    taken = [getattr(load_benchmark(name), "TAKES", ()) for name in available()]
    assert {"features"} | set().union(*taken) == set(OF_BENCHMARKS)


def test_the_command_refuses_them_before_it_looks_for_the_bundle(root, tmp_path):
    out = tmp_path / "report.json"
    arguments = ("--bundle=nowhere", f"--out={out}", "--prompt=x")
    refused = call(root, "evaluate", *arguments)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --benchmark shapes takes no --prompt: it takes --num")
    assert refused.stderr.count("\n") == 1
    assert not out.exists()
