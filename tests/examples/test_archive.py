"""The example of a new source of records, in a config and through `prepare`, as a user runs it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

import cogview_jax
from cogview_jax.data.token_store import TokenStore

HERE = Path(__file__).parent
CONFIG = """
import archive

from cogview_jax.configs import demo


def get_config():
    config = demo.get_config()
    config.data.source = {"kind": "archive"}
    return config
"""


def test_an_archive_is_prepared(chain, root, tmp_path):
    names = [f"{i}.png" for i in range(5)]
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(names):
            archive.write(chain.images / name, f"drawing number {i}.png")
    (tmp_path / "mine.py").write_text(CONFIG)
    _, *settings = chain.transformer("archive")
    settings = [text for text in settings if "data.source" not in text and "workdir" not in text]
    command = [sys.executable, "-m", "cogview_jax.prepare", f"--config={tmp_path / 'mine.py'}"]
    command += [f"--workdir={tmp_path / 'run'}", *settings]

    def call(*arguments):
        return subprocess.run(
            [*command, *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(HERE)])},
            capture_output=True,
            text=True,
            timeout=300,
        )

    result = call(f"--config.data.source.path={path}")
    assert result.returncode == 0, result.stderr
    store = TokenStore(tmp_path / "run" / "tokens")
    model = cogview_jax.load(tmp_path / "run" / "tokens" / "tokenizers")
    assert [store[i].key for i in range(5)] == [f"drawing number {i}.png" for i in range(5)]
    images = np.stack([np.asarray(Image.open(chain.images / name)) for name in names])
    codes = model.encode(images).reshape(5, -1)
    for i in range(5):
        np.testing.assert_array_equal(store[i].codes, codes[i])
        assert [model.text.decode(ids) for ids in store[i].captions] == [f"drawing number {i}"]

    result = call("--config.data.source.path=mine.py")
    line = "error: data.source.path = 'mine.py': expected a ZIP file"
    assert (result.returncode, result.stderr.splitlines()[-1]) == (2, line)
    result = call("--config.data.source.folder=mine")
    assert "has no config.data.source.folder; choices: kind, max_pixels, path" in result.stderr


def test_the_example_is_short():
    assert len((HERE / "archive.py").read_text().splitlines()) <= 40
