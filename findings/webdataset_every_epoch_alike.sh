#!/usr/bin/env bash
# webdataset 1.0.2, Python 3.11.
#
# Guess, before it was run: a data set that is shuffled has another order in each epoch; with a seed
# the orders are the same in each run.
# Seen: with `shardshuffle` the shards come in one order in all epochs of a data set, with a seed
# and without one, `.repeat()` or not. `.shuffle(n, seed=...)` begins its random numbers anew with
# each epoch, too. So a run that is given seeds, to be repeatable, sees the same batches in the same
# order in every epoch, which nothing shows: within an epoch all is shuffled. (Without a seed the
# samples of neighbouring shards are mixed in other ways, and the shards follow each other as
# before.)
# What helps: `detshuffle=True` for the shards, and for the samples `.shuffle(n,
# rng=random.Random(seed))`, made once.
#
# Output, orders in three epochs: "shardshuffle: 1", "shardshuffle, seed: 1", "shardshuffle and
# shuffle, seeds: 1", "detshuffle and shuffle with rng: 3, in each run the same".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet webdataset==1.0.2
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import random
import sys

import webdataset as wds

SHARDS, SAMPLES, EPOCHS = 8, 10, 3
names = [f"{sys.argv[1]}/{shard}.tar" for shard in range(SHARDS)]
for shard, name in enumerate(names):
    with wds.TarWriter(name) as tar:
        for sample in range(SAMPLES):
            number = SAMPLES * shard + sample
            tar.write({"__key__": str(number), "cls": number})


def shards(**settings):
    return wds.WebDataset(names, shardshuffle=SHARDS, **settings)


def epochs(samples):
    samples = samples.decode().to_tuple("cls")
    found = [tuple(number for (number,) in samples) for _ in range(EPOCHS)]
    assert all(sorted(each) == list(range(SHARDS * SAMPLES)) for each in found)
    return found


def with_rng():
    return epochs(shards(detshuffle=True, seed=1).shuffle(20, rng=random.Random(2)))


found = [
    f"shardshuffle: {len(set(epochs(shards())))}",
    f"shardshuffle, seed: {len(set(epochs(shards(seed=1))))}",
    f"shardshuffle and shuffle, seeds: {len(set(epochs(shards(seed=1).shuffle(20, seed=2))))}",
    f"detshuffle and shuffle with rng: {len(set(with_rng()))}"
    + ", in each run the same" * (with_rng() == with_rng()),
]
print(*found, sep="\n")
wanted = [
    "shardshuffle: 1",
    "shardshuffle, seed: 1",
    "shardshuffle and shuffle, seeds: 1",
    "detshuffle and shuffle with rng: 3, in each run the same",
]
sys.exit(found != wanted)
PYTHON
