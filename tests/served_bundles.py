"""Bundles as the Hub, a web server and a bucket serve them, and what becomes of their copies."""

import json
import shutil

import fsspec
from fsspec.implementations.memory import MemoryFile

from cogview_jax.checkpoints.remote_bundle import bundle_copy
from cogview_jax.runtime.files import sha256_tree

COMMIT = "0123456789abcdef" * 2 + "01234567"
HUB, RESOLVE = "hf://me/model", "/me/model/resolve"


def again(address):
    """What the next process finds."""
    bundle_copy.cache_clear()
    return bundle_copy(address)


def names_in(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def on_hub(server, bundle, extra=(), folder=""):
    """Serves the bundle as the Hub does, and other files beside it."""
    root = server.folder / RESOLVE[1:]
    shutil.copytree(bundle, root / "main" / folder)
    (root / "main" / "README.md").write_text("# A model")
    (root / COMMIT).symlink_to("main")
    listed = [{"rfilename": name} for name in [*names_in(root / "main"), *extra]]
    api = server.folder / "api/models/me/model/revision/main"
    api.parent.mkdir(parents=True, exist_ok=True)
    api.write_text(json.dumps({"sha": COMMIT, "siblings": listed}))
    return HUB


def on_web(server, bundle):
    """Serves the bundle with pages that list its folders."""
    (server.folder / "set").mkdir()
    root = shutil.copytree(bundle, server.folder / "set" / "model")
    for folder in (root, *root.rglob("*/")):
        entries = [f"{x.name}/" if x.is_dir() else x.name for x in sorted(folder.iterdir())]
        links = "".join(f'<a href="{name}">{name}</a>\n' for name in ["../", "?C=N;O=D", *entries])
        page = server.folder / "pages" / folder.relative_to(server.folder) / "index"
        page.parent.mkdir(parents=True)
        page.write_text(links)
        here = f"/{folder.relative_to(server.folder).as_posix()}/"
        server.always[here] = f"{server.url}/pages{here}index"
    return f"{server.url}/set/model/"


class Bucket:
    """fsspec's memory in the place of a bucket's file system."""

    def __init__(self, folder, address):
        self.memory = fsspec.filesystem("memory", skip_instance_cache=True)
        self.memory.store, self.memory.pseudo_dirs, self.address = {}, [""], address
        for name in names_in(folder):
            self.put(name, (folder / name).read_bytes())

    def put(self, name, data):
        path = self._path(f"{self.address}/{name}")
        self.memory.store[path] = MemoryFile(self.memory, path, data)

    def info(self, address):
        return self.memory.info(self._path(address))

    def cat_file(self, address, start, end):
        return self.memory.cat_file(self._path(address), start=start, end=end)

    def find(self, address, detail):
        found = self.memory.find(self._path(address), detail=detail)
        return {name.removeprefix("/"): about for name, about in found.items()}

    def _path(self, address):
        return "/" + address.partition("://")[2]


def assert_copied(place, bundle):
    assert (place / "bundle.json").read_bytes() == (bundle / "bundle.json").read_bytes()
    assert sha256_tree(place) == sha256_tree(bundle)


def paths_asked(server):
    return [path for _, path, _, _ in server.asked]
