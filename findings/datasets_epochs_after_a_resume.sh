#!/usr/bin/env bash
# datasets 5.2.0, Python 3.11.
#
# Guess, before it was run: an IterableDataset whose state was loaded in the middle of an epoch
# gives the rest of that epoch, and then whole epochs again.
# Seen: `load_state_dict` holds for every pass from then on, not for the next one alone. Of 100
# records, resumed behind the 60th, each later epoch has the last 40, and the same ones each time;
# with a shuffle buffer the epochs are as short. With a state that was taken at the end of an epoch
# every epoch is empty, so a loop over epochs ends at once, done. A run that is not interrupted is
# right, and so is one that calls `set_epoch`, which looks as if it were for shuffling alone.
# What helps: `set_epoch(epoch)` before every epoch after the one that is resumed, shuffled or not.
#
# Output, records in four epochs: "not resumed: 100 100 100 100", "resumed: 40 40 40 40, from record
# {60}", "resumed, set_epoch: 40 100 100 100", "resumed after a whole epoch: 0 0 0 0".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import itertools
import sys

from datasets import Dataset

EPOCHS, RECORDS = 4, 100


def records():
    return Dataset.from_dict({"number": list(range(RECORDS))}).to_iterable_dataset(num_shards=4)


def state_after(count):
    samples = records()
    assert len(list(itertools.islice(samples, count))) == count
    return samples.state_dict()


def epochs(after=None, set_epoch=False):
    """How many records the epochs have, and from which records they start."""
    samples, found = records(), []
    if after is not None:
        samples.load_state_dict(state_after(after))
    for epoch in range(EPOCHS):
        if set_epoch:
            samples.set_epoch(epoch)
        found.append([sample["number"] for sample in samples])
    counts = " ".join(str(len(numbers)) for numbers in found)
    return counts, {numbers[0] for numbers in found if numbers}


resumed, starts = epochs(after=60)
found = [
    f"not resumed: {epochs()[0]}",
    f"resumed: {resumed}, from record {starts}",
    f"resumed, set_epoch: {epochs(after=60, set_epoch=True)[0]}",
    f"resumed after a whole epoch: {epochs(after=RECORDS)[0]}",
]
print(*found, sep="\n")
wanted = [
    "not resumed: 100 100 100 100",
    "resumed: 40 40 40 40, from record {60}",
    "resumed, set_epoch: 40 100 100 100",
    "resumed after a whole epoch: 0 0 0 0",
]
sys.exit(found != wanted)
PYTHON
