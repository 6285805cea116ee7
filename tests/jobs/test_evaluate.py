"""What evaluation asks the model, and what it refuses."""

import json

import numpy as np
import pytest

import cogview_jax
from cogview_jax.evaluation.shapes_report import shapes_report
from cogview_jax.jobs.evaluate import shapes
from cogview_jax.runtime.errors import InputError
from cogview_jax.sampling.filters import SamplingConfig


def test_the_report_is_that_of_the_models_own_pictures(chain, tmp_path):
    sampling = SamplingConfig(temperature=0.7, top_k=5, top_p=0.9)
    bundle, out = f"{chain.run}/bundle", tmp_path / "report.json"
    shapes(bundle, str(out), prompts=4, seed=3, sampling=sampling, batch_size=3)

    model = cogview_jax.load(bundle)
    expected = shapes_report(
        lambda texts: np.stack(
            [
                np.asarray(picture)
                for (picture,) in model.generate(texts, 1, 3, sampling=sampling, batch_size=3)
            ]
        ),
        lambda pictures: model.decode(model.encode(pictures)),
        size=16,
        prompts=4,
        seed=3,
    )
    written = json.loads(out.read_text())
    assert {split: written[split] for split in expected} == expected
    assert written["settings"]["top_p"] == 0.9


@pytest.mark.parametrize(
    ("bundle", "prompts", "message"),
    [
        ("run", 1, "--num_prompts 1: expected at least 2"),
        ("codec", 4, "needs a transformer and a codec to be evaluated"),
    ],
)
def test_mistakes_leave_no_report(chain, tmp_path, bundle, prompts, message):
    folder, out = chain.run if bundle == "run" else chain.codec, tmp_path / "report.json"
    with pytest.raises(InputError, match=message):
        shapes(
            f"{folder}/bundle",
            str(out),
            prompts=prompts,
            seed=0,
            sampling=SamplingConfig(),
            batch_size=4,
        )
    assert not out.exists()
