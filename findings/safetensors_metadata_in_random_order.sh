#!/usr/bin/env bash
# safetensors 0.8.0 with numpy 2.4.6; Python 3.11.
#
# Guess, before it was run: a safetensors file is a function of its arrays and metadata, as its
# sorted tensors suggest, so two saves of the same are equal byte for byte.
# Seen: with two or more entries of metadata their order in the header is random, not only from
# process to process but from call to call. The files are equal in size and hold the same, and have
# different hashes. With no more than one entry all saves are equal. So weights that are named by
# their SHA-256, resumed runs that are compared, and caches by content take equal files for
# different ones, half of the time where there are two entries.
# What helps: one entry that holds all others as JSON with sorted keys; or writing the header, which
# is JSON behind its size, once more with sorted metadata.
#
# Output: "different files of 40 saves: 1 with one entry, 2 with two, all of one size".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6
cat > "$folder/save.py" <<'PYTHON'
"""Saves the same array many times, and counts how many different files that gives."""

import numpy as np
import safetensors.numpy

arrays = {"weight": np.arange(12, dtype=np.float32)}
entries = {"format": "pt", "step": "1000"}
one = {safetensors.numpy.save(arrays, {"format": "pt"}) for _ in range(40)}
two = {safetensors.numpy.save(arrays, entries) for _ in range(40)}
assert all(np.array_equal(safetensors.numpy.load(file)["weight"], arrays["weight"]) for file in two)
sizes = {len(file) for file in two}
same = "all of one size" if len(sizes) == 1 else f"of {len(sizes)} sizes"
print(f"different files of 40 saves: {len(one)} with one entry, {len(two)} with two, {same}")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/save.py")
echo "$seen"
[[ "$seen" == "different files of 40 saves: 1 with one entry, 2 with two, all of one size" ]]
