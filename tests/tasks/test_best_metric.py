"""What may be the best metric of a run, and what of it is better."""

import re

import pytest

from cogview_jax.runtime.errors import InputError
from cogview_jax.tasks.best_metric import BestMetric, find_best_metric
from cogview_jax.tasks.monitor import check_benchmark
from cogview_jax.tasks.train_config import TrainConfig

VALIDATION = ("validation_loss", "validation_psnr")
BENCHMARK = {"benchmark/seen/mse": False, "benchmark/seen/all": True}
WITH_BENCHMARK = {"benchmark": "shapes", "benchmark_every": 5}


def config(**changes):
    return TrainConfig(**{"steps": 10, "global_batch": 2} | changes)


def find(name, validation=VALIDATION, stated=BENCHMARK, **changes):
    return find_best_metric(
        config(best_metric=name, **WITH_BENCHMARK | changes),
        validation,
        stated,
        lambda: ["loss", "psnr", "grad_norm"],
    )


def test_a_higher_value_is_better_or_not():
    assert find("loss") == BestMetric("loss")
    assert find("grad_norm") == BestMetric("grad_norm")
    assert find("psnr") == BestMetric("psnr", highest=True)
    assert find("validation_loss") == BestMetric("validation_loss", False, "validation")
    assert find("validation_psnr") == BestMetric("validation_psnr", True, "validation")
    assert find("benchmark/seen/mse") == BestMetric("benchmark/seen/mse", False, "benchmark")
    found = find("benchmark/seen/all", stop_after=3, validate_every=1)
    assert found == BestMetric("benchmark/seen/all", True, "benchmark")


def test_no_step_is_traced_for_what_is_known():
    def never():
        raise AssertionError

    for name in ("loss", *VALIDATION, *BENCHMARK):
        find_best_metric(config(best_metric=name), VALIDATION, BENCHMARK, never)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("lsos", {}, "is not measured: did you mean loss?"),
        ("validation_los", {}, "is not measured: did you mean validation_loss"),
        ("benchmark/seen/al", {}, "is not measured: did you mean benchmark/seen/all"),
        (
            "zzz",
            {},
            "is not measured: choices: benchmark/seen/all, benchmark/seen/mse, grad_norm, loss,"
            " psnr, validation_loss, validation_psnr",
        ),
        (
            "validation_loss",
            {"validation": ()},
            "is not measured, since train.validate_every is 0",
        ),
        (
            "benchmark/seen/all",
            {"stated": {}, "benchmark": "", "benchmark_every": 0},
            "is not measured, since train.benchmark is empty",
        ),
        (
            "benchmark/seen/all",
            {"stated": {}},
            "the file of the benchmark shapes does not say which of its numbers are better",
        ),
        ("psnr", {"stop_after": 2}, "is none of them: choices: benchmark/seen/all, benchmark"),
    ],
)
def test_what_is_not_measured_is_refused(name, changes, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        find(name, **changes)
    assert f"train.best_metric = {name!r}" in str(error.value)


def test_a_benchmark_that_a_run_cannot_measure_is_refused():
    assert check_benchmark(config(), "caption") == {}
    found = check_benchmark(config(**WITH_BENCHMARK), "caption")
    assert found["benchmark/held_out/said/colour_and_shape"] is True
    for name, task, changes, message in (
        ("shape", None, {}, r"'shape': did you mean shapes"),
        ("shapes", None, {}, "'shapes' measures nothing of an image tokenizer"),
        ("tokenizer", "caption", {}, "measures nothing of a transformer of layout.task caption"),
        ("fid", "text_to_image", {}, "measures images and no bundle"),
        ("pictures", "text_to_image", {}, "needs --real, which a config cannot give"),
        ("shapes", "caption", {"benchmark_prompts": 1}, "benchmark_prompts 1: expected at least 2"),
    ):
        with pytest.raises(InputError, match=message):
            check_benchmark(config(**WITH_BENCHMARK | {"benchmark": name} | changes), task)
