"""What evaluation refuses; its report is compared where the door is run."""

import pytest

from cogview_jax.jobs.evaluate import shapes
from cogview_jax.runtime.errors import InputError
from cogview_jax.sampling.filters import SamplingConfig


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
