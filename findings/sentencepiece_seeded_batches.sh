#!/usr/bin/env bash
# sentencepiece 0.2.3, Python 3.11.
#
# Guess, before it was run: `set_random_generator_seed`, called once, makes a run of sampled
# encodings (subword regularization, BPE dropout) repeatable, and each call goes on in the stream.
# Seen: sentence by sentence, yes. `encode` of a list starts new threads in each call, also with
# `num_threads=1`, and each new thread begins the stream of the seed from its start. So every epoch
# gets the same encodings of a batch, token by token, and the regularization is gone, for BPE as for
# unigram models; the encodings within a batch differ, so a look at one shows nothing. Without a
# seed all epochs differ. Threads of one's own do the same: four that read data sample alike, and a
# pool made anew for each epoch repeats itself.
# What helps: sentences one by one in a thread that lives on, or another seed before each batch.
#
# Output, for unigram and for bpe: "no seed: 10 of 10 epochs differ", "seed, one by one: 10 of 10
# epochs differ", "seed, lists: 1 of 10 epochs differ", "seed, four threads: 1 of 4 streams differ".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet sentencepiece==0.2.3
for kind in unigram bpe; do
    "$folder/venv/bin/python" - "$kind" <<'PYTHON'
import io
import random
import sys
import threading

import sentencepiece as spm

EPOCHS, THREADS = 10, 4
random.seed(0)
words = ["".join(random.choices("abcdefgh", k=random.randint(2, 9))) for _ in range(300)]
sentences = [" ".join(random.choices(words, k=12)) for _ in range(2000)]
model = io.BytesIO()
spm.SentencePieceTrainer.train(
    sentence_iterator=iter(sentences),
    model_writer=model,
    vocab_size=200,
    model_type=sys.argv[1],
    minloglevel=2,
)
processor = spm.SentencePieceProcessor(model_proto=model.getvalue())
sampled = {"enable_sampling": True, "alpha": 0.1, "nbest_size": -1}
batch = sentences[:16]


def one_by_one():
    return str([processor.encode(sentence, **sampled) for sentence in batch])


def as_a_list():
    return str(processor.encode(batch, num_threads=1, **sampled))


found = [f"no seed: {len({as_a_list() for _ in range(EPOCHS)})} of {EPOCHS} epochs differ"]
spm.set_random_generator_seed(1)
for name, encode in [("one by one", one_by_one), ("lists", as_a_list)]:
    epochs = {encode() for _ in range(EPOCHS)}
    found.append(f"seed, {name}: {len(epochs)} of {EPOCHS} epochs differ")
streams = []
threads = [threading.Thread(target=lambda: streams.append(one_by_one())) for _ in range(THREADS)]
for thread in threads:
    thread.start()
    thread.join()
found.append(f"seed, four threads: {len(set(streams))} of {THREADS} streams differ")
print(sys.argv[1], *found, sep="\n")
wanted = [
    "no seed: 10 of 10 epochs differ",
    "seed, one by one: 10 of 10 epochs differ",
    "seed, lists: 1 of 10 epochs differ",
    "seed, four threads: 1 of 4 streams differ",
]
sys.exit(found != wanted)
PYTHON
done
