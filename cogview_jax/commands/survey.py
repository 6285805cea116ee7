"""Looks at one's data before training: writes a page and a report of what a config's source holds.

Reads records as training does, chosen at random, and tells how many can be used and why others
cannot, the sizes of images, the lengths of captions in tokens and their languages, duplicates, the
mean of pixels, and how fast records are read. It suggests settings as flags. OUT then holds
survey.html and survey.json, and the names of duplicates in exact_duplicates.txt and
near_duplicates.txt, which data.filter.exclude leaves out.

  python -m cogview_jax.survey --config small_codec:64 --out survey \\
      --config.data.source.path=my_images
"""

from absl import flags

from cogview_jax.commands.experiment_flag import experiment_flag
from cogview_jax.runtime import flag_kinds
from cogview_jax.runtime.config_flag import given

CONFIG = experiment_flag()
OUT = flag_kinds.path_flag("out", "the folder to write: new, or an earlier survey", required=True)
RECORDS = flags.DEFINE_integer(
    "records", 4000, "how many records are read, chosen at random; 0 for all", lower_bound=0
)


def main() -> None:
    """Flags in, one job."""
    from cogview_jax.tasks.survey import survey_data

    survey_data(CONFIG.value, given(), OUT.value, RECORDS.value)
