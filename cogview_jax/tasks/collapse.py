"""Warns where an image tokenizer uses few of its codes."""

from collections.abc import Mapping

from cogview_jax.runtime.processes import log
from cogview_jax.tasks.experiment import CodecExperiment

#: The share of the codes below which a codebook has collapsed.
USAGE = 0.1
#: After how many steps it is judged. A codebook starts with few codes in use, and it takes as long
#: until unused ones are moved: the counts of uses are averages over some hundred steps.
SETTLED = 500


class CollapseWarning:
    """One line on standard error, once, at the first log point where a codebook has collapsed."""

    def __init__(self, experiment: CodecExperiment) -> None:
        """Nothing was seen yet."""
        self._experiment, self._warned = experiment, False

    def check(self, step: int, metrics: Mapping[str, float]) -> None:
        """Looks at the `codebook_usage` of a log point."""
        # A decoder that is trained alone measures no use of codes.
        usage = metrics.get("codebook_usage", 1.0)
        if self._warned or step < SETTLED or usage >= USAGE:
            return
        self._warned = True
        model = self._experiment.model
        remedies = model.quantiser.remedies(self._experiment.loss, model.code_width)
        log(
            f"step {step}: the codebook has collapsed: codebook_usage is {usage:.1%} of"
            f" {model.codebook:,} codes, expected at least {USAGE:.0%}. Try, in another --workdir:"
            f" {'; '.join(remedies)}"
        )
