"""Samples with the programs beside it: python run.py --prompt "a red heart" --seed 0 --out a.npz"""

import argparse
import hashlib
import json
from pathlib import Path

import jax.export
import numpy as np
import sentencepiece

HERE = Path(__file__).resolve().parent
ABOUT = json.loads((HERE / "export.json").read_text())
TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I32": "int32"}


def read(name: str) -> bytes:
    """A file, which has to be the one that was exported."""
    data = (HERE / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != ABOUT["files"][name]:
        raise SystemExit(f"{name} is damaged")
    return data


def arrays(data: bytes) -> dict[str, jax.Array]:
    """What a safetensors file holds."""
    start, found = 8 + int.from_bytes(data[:8], "little"), {}
    for name, x in json.loads(data[8:start]).items():
        if name != "__metadata__":
            begin, end = (start + offset for offset in x["data_offsets"])
            flat = np.frombuffer(data[begin:end], jax.numpy.dtype(TYPES[x["dtype"]]))
            found[name] = jax.device_put(flat.reshape(x["shape"]))
    return found


flags = argparse.ArgumentParser()
options = {"prompt": "", "out": "samples.npz", "seed": 0, "num_images": 1} | ABOUT["sampling"]
for name, value in options.items():
    flags.add_argument(f"--{name}", type=type(value), default=value, required=name == "prompt")
given, layout, rows = vars(flags.parse_args()), ABOUT["prompt"], ABOUT["batch_size"]
if not 0 <= given["seed"] < 2**32 or given["num_images"] < 1 or not given["temperature"] >= 0:
    flags.error("expected a seed from 0 to 4294967295, num_images from 1, temperature from 0")
about = ABOUT["programs"].get("text_to_image" + "_guided" * (given["guidance"] != 1))
if about is None:
    flags.error("the model has learned no guidance: leave it at 1")
program = jax.jit(jax.export.deserialize(bytearray(read(about["file"]))).call)
weights = {part: arrays(read(ABOUT["weights"][part])) for part in about["weights"]}
text = sentencepiece.SentencePieceProcessor(model_proto=read(ABOUT["text"]))
pieces = np.array(text.encode(given["prompt"])[: layout["text_length"]]) + layout["text_start"]
tokens = np.concatenate([layout["before"], pieces, layout["after"]])
places = np.arange(layout["length"]) - layout["length"] + len(tokens)  # below 0: padding
given |= {"tokens": np.pad(tokens, (sum(places < 0), 0)), "positions": places.clip(0)}
hashed = int.from_bytes(hashlib.sha256(given["prompt"].encode()).digest()[:4], "big")
given |= {"valid": places >= 0, "prompt_hash": hashed}
batches, count, inputs = [], given["num_images"], about["inputs"].items()
for first in range(0, count, rows):
    given["index"] = first + np.arange(rows)
    typed = {n: np.broadcast_to(given[n], x["shape"]).astype(x["dtype"]) for n, x in inputs}
    batches.append(program(weights, typed))
np.savez(given["out"], **jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *batches))
