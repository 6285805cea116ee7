"""Folders of a small CLIP as transformers writes them, with weights by the rule of the oracles."""

import json
import shutil
import zlib

import numpy as np
import safetensors.numpy


def rule_weight(name, shape, seed):
    """The weight of that name; the rule is written out in tests/oracles/README.md."""
    x = np.random.default_rng((zlib.crc32(name.encode()) + seed) % 2**32).standard_normal(shape)
    if "norm" in name or "layrnorm" in name:
        x = 1 + 0.2 * x if name.endswith("weight") else 0.1 * x
    elif name.endswith("bias"):
        x = 0.1 * x
    elif name == "logit_scale":
        x = 2.6592 + 0.1 * x
    elif "patch_embedding" in name:
        x = x / np.sqrt(np.prod(shape[1:]))
    elif "embedding" in name:
        x = 0.5 * x
    else:
        x = x * (1.5 if "q_proj" in name or "k_proj" in name else 1) / np.sqrt(shape[1])
    return np.asarray(x, np.float32)


def read_facts(oracles):
    return json.loads(oracles("clip/facts.json").read_text(encoding="utf-8"))


def state_of(facts, model):
    """Name -> array of the model "a" or "b"."""
    shapes = facts["models"][model]["shapes"]
    return {name: rule_weight(name, shape, facts["seed"]) for name, shape in shapes.items()}


def write_folder(folder, oracles, model="a", *, state=None, config=None):
    """A folder of that model, or with another state or config; gives the folder."""
    facts = read_facts(oracles)
    folder.mkdir(parents=True, exist_ok=True)
    state = state_of(facts, model) if state is None else state
    config = facts["models"][model]["config"] if config is None else config
    safetensors.numpy.save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(oracles(f"clip/{name}"), folder / name)
    return folder
