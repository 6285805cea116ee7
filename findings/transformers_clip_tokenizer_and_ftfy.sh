#!/usr/bin/env bash
# transformers 4.57.6, tokenizers 0.22.1, with and without ftfy 6.3.1; Python 3.11.
#
# Guess, before it was run: ftfy repairs broken text, so for the tokens of a clean caption it does
# not matter whether it is installed, and the slow tokenizer of CLIP gives what the fast one gives.
# Seen: without ftfy the slow `CLIPTokenizer` splits text by another rule, that of BERT, which puts
# a space on either side of every Chinese character: each becomes a word of its own, whose last
# token is another. An English caption has the same tokens all three ways; a Chinese one has those
# of the fast tokenizer only where ftfy is installed. So embeddings of Chinese captions, and
# CLIPScore, depend on a package that nothing asks for.
# What helps: `CLIPTokenizerFast` (`AutoTokenizer` takes it where it can).
#
# Output: "without ftfy: english equal, chinese differs", "with ftfy: english equal, chinese equal".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==4.57.6 tokenizers==0.22.1
cat > "$folder/compare.py" <<'PYTHON'
"""Prints whether both tokenizers of a vocabulary of single bytes agree."""

import json
import pathlib
import sys

from transformers import CLIPTokenizer, CLIPTokenizerFast
from transformers.models.clip.tokenization_clip import bytes_to_unicode

folder = pathlib.Path(sys.argv[1])
symbols = list(bytes_to_unicode().values())
pieces = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
pieces += ["<|startoftext|>", "<|endoftext|>"]
(folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
(folder / "merges.txt").write_text("#version: 0.2\n")
files = {"vocab_file": f"{folder}/vocab.json", "merges_file": f"{folder}/merges.txt"}
slow, fast = CLIPTokenizer(**files), CLIPTokenizerFast(**files)
found = []
for language, text in (("english", "a red circle"), ("chinese", "红色圆形")):
    same = slow(text)["input_ids"] == fast(text)["input_ids"]
    found.append(f"{language} {'equal' if same else 'differs'}")
print(f"{sys.argv[2]}: {', '.join(found)}")
PYTHON
without=$("$folder/venv/bin/python" "$folder/compare.py" "$folder" "without ftfy" 2>"$folder/log")
"$folder/venv/bin/pip" install --quiet ftfy==6.3.1
with=$("$folder/venv/bin/python" "$folder/compare.py" "$folder" "with ftfy" 2>"$folder/log")
printf '%s\n%s\n' "$without" "$with"
[[ "$without" == "without ftfy: english equal, chinese differs" ]]
[[ "$with" == "with ftfy: english equal, chinese equal" ]]
