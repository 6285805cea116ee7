"""Bundles at addresses: copied whole or not at all, verified, and only asked about again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile

import reference
import tiny
from cogview_jax.checkpoints import bundle_folder, copied_bundles
from cogview_jax.checkpoints.bundle import Bundle, TransformerPart, transformer_shapes
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.checkpoints.remote_bundle import bundle_copy, bundle_name
from cogview_jax.checkpoints.step_bundle import located, open_bundle
from cogview_jax.data.remote import download, failures, files
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.files import sha256_tree
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tokenizers.layout import make_layout
from file_server import FileServer

COMMIT = "0123456789abcdef" * 2 + "01234567"
HUB, RESOLVE = "hf://me/model", "/me/model/resolve"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The folder of a bundle with one part."""
    folder = tmp_path_factory.mktemp("written") / "model"
    positions = make_layout(tiny.LAYOUT, tiny.VOCABULARY).positions
    model = Transformer(tiny.TRANSFORMER, tiny.VOCABULARY.size, positions)
    params = reference.random_like(unbox(transformer_shapes(model)), 0)
    part = TransformerPart(tiny.TRANSFORMER, tiny.VOCABULARY, tiny.LAYOUT, params)
    write_bundle(folder, transformer=part)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / copied_bundles.FOLDER


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    with FileServer(tmp_path / "served") as server:
        yield server


@pytest.fixture(autouse=True)
def _alone(cache, server, monkeypatch):
    for name in ("HF_TOKEN", copied_bundles.LIMIT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(failures, "PAUSES", (0.001,) * len(failures.PAUSES))
    bundle_copy.cache_clear()
    yield
    bundle_copy.cache_clear()


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


@pytest.fixture
def bucket(bundle, monkeypatch):
    bucket = Bucket(bundle, "gs://bucket/sets/model")
    monkeypatch.setattr(files, "_file_system", lambda name: bucket)
    return bucket


def assert_copied(place, bundle):
    assert (place / "bundle.json").read_bytes() == (bundle / "bundle.json").read_bytes()
    assert sha256_tree(place) == sha256_tree(bundle)


def paths_asked(server):
    return [path for _, path, _, _ in server.asked]


# ---- what is copied


def test_a_repository_of_the_hub(server, bundle, cache):
    place = bundle_copy(on_hub(server, bundle))
    assert_copied(place, bundle)
    assert place.is_relative_to(cache)
    assert place.name == "model"
    assert not any("README" in path for path in paths_asked(server))
    # Everything but the first question is of one commit, whatever is pushed meanwhile.
    files = [path for path in paths_asked(server) if path.startswith(RESOLVE)]
    assert files[0] == f"{RESOLVE}/main/bundle.json"
    assert all(path.startswith(f"{RESOLVE}/{COMMIT}/transformer/") for path in files[1:])


def test_a_folder_and_a_revision_of_the_hub(server, bundle):
    on_hub(server, bundle, folder="a b/small")
    api = server.folder / "api/models/me/model/revision"
    (api / "main").rename(api / "v1")
    (server.folder / RESOLVE[1:] / "v1").symlink_to("main")
    assert_copied(bundle_copy("hf://me/model@v1/a b/small"), bundle)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_web_server_that_lists_folders(server, bundle, ranges):
    address = on_web(server, bundle)
    if not ranges:
        server.always |= {f"/set/model/{name}": "whole" for name in names_in(bundle)}
    assert_copied(bundle_copy(address), bundle)


def test_a_bucket(bucket, bundle):
    bucket.put("transformer/.DS_Store", b"left by a file manager")
    bucket.put("notes/other.txt", b"x")
    place = bundle_copy(bucket.address)
    assert_copied(place, bundle)
    assert {name.split("/")[0] for name in names_in(place)} == {"bundle.json", "transformer"}


def test_large_files_come_in_pieces(server, bundle, monkeypatch):
    monkeypatch.setattr(download, "_PIECE", 1000)
    assert_copied(bundle_copy(on_hub(server, bundle)), bundle)
    assert "bytes=1000-1999" in {asked for _, _, asked, _ in server.asked}


def test_every_use_of_a_bundle_takes_an_address(server, bundle):
    address = on_hub(server, bundle)
    opened, here = open_bundle(address), Bundle(bundle)
    assert opened.parts == here.parts
    assert located(address) == str(opened.path) == str(bundle_folder.bundle_folder(address))


# ---- the next time


def test_only_the_description_is_asked_for_again(server, bundle):
    address = on_hub(server, bundle)
    place = bundle_copy(address)
    assert bundle_copy(address) == place
    before = len(server.asked)
    assert again(address) == place
    assert paths_asked(server)[before:] == [f"{RESOLVE}/main/bundle.json"]


def test_a_commit_never_changes_and_is_not_asked_for(server, bundle):
    on_hub(server, bundle)
    api = server.folder / "api/models/me/model/revision"
    (api / "main").rename(api / COMMIT)
    place = bundle_copy(f"{HUB}@{COMMIT}")
    before = len(server.asked)
    assert again(f"{HUB}@{COMMIT}") == place
    assert len(server.asked) == before


def test_another_bundle_at_the_address_is_copied(server, bundle, tmp_path):
    address = on_hub(server, bundle)
    old = bundle_copy(address)
    described = json.loads((bundle / "bundle.json").read_text()) | {"step": 7}
    del described["content_sha256"]
    (server.folder / RESOLVE[1:] / "main" / "bundle.json").write_text(json.dumps(described))
    new = again(address)
    assert new != old
    assert (Bundle(old).step, Bundle(new).step) == (None, 7)


def test_without_a_network_the_copy_is_used(server, bundle, capsys):
    address = on_hub(server, bundle)
    place = bundle_copy(address)
    server.everywhere = 503
    before = len(server.asked)
    assert again(address) == place
    assert f"503 Service Unavailable (2 tries): the copy of {time.strftime('%Y')}" in (
        capsys.readouterr().err
    )
    assert len(server.asked) == before + 2


@pytest.mark.parametrize("status", [404, 401])
def test_what_a_server_refuses_now_is_refused(server, bundle, status):
    address = on_hub(server, bundle)
    bundle_copy(address)
    server.everywhere = status
    with pytest.raises(InputError, match=str(status)):
        again(address)


def test_without_a_network_and_a_copy(server, bundle):
    address = on_hub(server, bundle)
    server.everywhere = "reset"
    with pytest.raises(
        SystemFault, match=rf"^{HUB}: http.* \(7 tries\); there is no copy of an earlier time$"
    ):
        bundle_copy(address)


# ---- what goes wrong on the way


def test_what_may_pass_is_tried_again(server, bundle):
    address = on_hub(server, bundle)
    server.faults.extend([500, "short", "reset", 429, None, None] * 3)
    assert_copied(bundle_copy(address), bundle)


def test_what_fails_leaves_no_copy_and_goes_on_later(server, bundle, cache):
    address = on_hub(server, bundle)
    names = [name for name in names_in(bundle) if name != "bundle.json"]
    bad = f"{RESOLVE}/{COMMIT}/{names[-1]}"
    server.always[bad] = 403
    with pytest.raises(InputError, match=f"^{HUB}: .*{names[-1]}: 403 Forbidden"):
        bundle_copy(address)
    assert not [path for path in cache.iterdir() if len(path.name) == 16]
    fetched = {p for _, p, asked, _ in server.asked if asked not in ("", "bytes=0-0")}
    server.always.clear()
    server.asked.clear()
    assert_copied(again(address), bundle)
    assert server.ranges(bad)
    assert not fetched & {p for _, p, asked, _ in server.asked if asked not in ("", "bytes=0-0")}


@pytest.mark.parametrize("change", [lambda data: data[:-1] + b"?", lambda data: data + b"?"])
def test_other_bytes_than_those_described(server, bundle, cache, change):
    address = on_hub(server, bundle)
    name = max(names_in(bundle), key=lambda name: (bundle / name).stat().st_size)
    file = server.folder / RESOLVE[1:] / "main" / name
    data = file.read_bytes()
    file.write_bytes(change(data))
    recorded = Bundle(bundle).sha256("transformer")[:12]
    found = sha256_tree(server.folder / RESOLVE[1:] / "main" / "transformer")[:12]
    with pytest.raises(InputError) as caught:
        bundle_copy(address)
    assert str(caught.value) == (
        f"{HUB}: transformer has sha256 {found}, but bundle.json records {recorded}: it was"
        " damaged or exchanged"
    )
    assert names_in(cache) == []
    file.write_bytes(data)
    assert_copied(again(address), bundle)


def test_a_description_that_is_none(server, bundle, cache):
    address = on_hub(server, bundle)
    file = server.folder / RESOLVE[1:] / "main" / "bundle.json"
    file.write_text(file.read_text().replace('"step": null', '"step": 3'))
    with pytest.raises(InputError, match=f"^{HUB}/bundle.json: damaged: it was changed"):
        bundle_copy(address)
    file.write_text("<html>")
    with pytest.raises(InputError, match=f"^{HUB}/bundle.json.* not readable as JSON"):
        bundle_copy(address)
    assert names_in(cache) == []


KILLED = """
import sys
from cogview_jax.checkpoints.remote_bundle import bundle_copy
print(bundle_copy(sys.argv[1]))
"""


def test_a_killed_copy_leaves_nothing_under_its_name(root, server, bundle, cache):
    address = on_hub(server, bundle)
    last = names_in(bundle)[-1]
    server.always[f"{RESOLVE}/{COMMIT}/{last}"] = "hang"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, address], env=os.environ | {"PYTHONPATH": str(root)}
    )
    while not server.ranges(f"{RESOLVE}/{COMMIT}/{last}"):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(cache.glob("*.partial"))
    assert not [path for path in cache.iterdir() if len(path.name) == 16]
    server.always.clear()
    assert_copied(bundle_copy(address), bundle)
    assert not list(cache.glob("*.partial"))


def test_of_many_at_once_one_copies(server, bundle):
    address = on_hub(server, bundle)
    server.delay = 0.01
    with ThreadPoolExecutor(4) as pool:
        places = {*pool.map(bundle_copy.__wrapped__, [address] * 4)}
    assert len(places) == 1
    assert_copied(*places, bundle)
    ranges = [(path, asked) for _, path, asked, _ in server.asked if asked]
    assert len({*ranges}) == len(ranges)


# ---- what a server may not do

OUTSIDE = ["../x", "transformer/../../x", "/etc/x", "transformer\\..\\x", "a//b", "", "./a", "a/\0"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_out_of_the_folder(server, bundle, cache, tmp_path, name):
    address = on_hub(server, bundle, extra=[name])
    with pytest.raises(InputError, match="which is no name of a file in a folder"):
        bundle_copy(address)
    assert not list(tmp_path.rglob("x"))
    assert not [path for path in cache.iterdir() if len(path.name) == 16]


def test_names_in_a_bucket_that_lead_out_of_the_folder(bucket):
    bucket.put("transformer/../../x", b"x")
    with pytest.raises(InputError, match="no name of a file in a folder"):
        bundle_copy(bucket.address)


def test_links_of_a_page_that_lead_out_of_the_folder(server, bundle):
    address = on_web(server, bundle)
    page = server.folder / "pages/set/model/index"
    text = page.read_text()
    away = "<a href='/etc/x'> <a href='http://127.0.0.1:9/x'> <a href='../../x'> <a href='#top'>"
    page.write_text(text + away)
    assert_copied(bundle_copy(address), bundle)
    page.write_text(text + "<a href='transformer/%2e%2e/%2e%2e/x'>")
    (server.folder / "set/model/bundle.json").write_text((bundle / "bundle.json").read_text() + " ")
    with pytest.raises(InputError, match=r"'transformer/\.\./\.\./x', which is no name of a file"):
        again(address)


def test_a_file_that_is_a_folder_too(server, bundle):
    address = on_hub(server, bundle, extra=["transformer"])
    with pytest.raises(InputError, match="has transformer both as file and as folder"):
        bundle_copy(address)


@pytest.mark.parametrize(
    "answer", ["[]", '{"sha": "main", "siblings": []}', "<html>", '{"sha": 1}']
)
def test_a_list_that_is_none(server, bundle, answer):
    address = on_hub(server, bundle)
    (server.folder / "api/models/me/model/revision/main").write_text(answer)
    with pytest.raises(InputError, match="expected a list of files"):
        bundle_copy(address)


# ---- whose request it is


def test_the_token_goes_to_the_hub_alone(server, bundle, tmp_path, monkeypatch):
    address = on_hub(server, bundle)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (tmp_path / "elsewhere").mkdir()
    name = names_in(bundle)[-1]
    shutil.copy(bundle / name, tmp_path / "elsewhere" / "blob")
    with FileServer(tmp_path / "elsewhere") as other:
        server.always[f"{RESOLVE}/{COMMIT}/{name}"] = f"{other.url}/blob"
        assert_copied(bundle_copy(address), bundle)
        assert other.asked
        assert "Authorization" not in other.headers
    assert server.headers["Authorization"] == "Bearer hf_secret"


@pytest.mark.parametrize(
    ("status", "code", "token", "said"),
    [
        (401, "RepoNotFound", "", "401 Unauthorized, no such repository, or a private one: check"),
        (401, "", "hf_x", "401 Unauthorized: the token in HF_TOKEN may not read it"),
        (403, "GatedRepo", "hf_x", "403 Forbidden, its owner grants access on its page: the token"),
        (401, "", "", "needs a token, in the variable HF_TOKEN"),
        (404, "RevisionNotFound", "", "404 Not Found, no such revision: check the address"),
        (404, "EntryNotFound", "", "is no bundle, there is no bundle.json in it: http"),
    ],
)
def test_what_the_hub_refuses(server, bundle, monkeypatch, status, code, token, said):
    address = on_hub(server, bundle)
    monkeypatch.setenv("HF_TOKEN", token)
    server.everywhere, server.answer_headers = status, {"X-Error-Code": code}
    with pytest.raises(InputError) as caught:
        bundle_copy(address)
    assert str(caught.value).startswith(HUB)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hf_x" not in str(caught.value)


def test_a_web_server_without_lists_of_folders(server, bundle):
    shutil.copytree(bundle, server.folder / "model")
    with pytest.raises(InputError, match="a web server has to list the folder: `autoindex on`"):
        bundle_copy(f"{server.url}/model")


def test_a_missing_package_is_named(monkeypatch):
    files._file_system.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for address in ("s3://bucket/model", HUB):
        with pytest.raises(InputError, match=rf"^{address}: .* needs .*cogview-jax\[remote\]"):
            bundle_copy(address)


# ---- addresses


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ftp://h/model", "begins with hf://, https://"),
        ("hf://model", "expected hf://OWNER/NAME[@REVISION][/FOLDER]"),
        ("hf://me/model/../other", "expected hf://OWNER"),
        ("hf://me/..", "expected hf://OWNER"),
        ("gs://bucket/*/model", "this is a pattern"),
        ("s3:///model", "without the name of a server"),
        ("https://me:secret@h/model", "password"),
        ("https://h/model?sig=secret", "a query may hold a secret"),
        ("gs:/bucket/model", "expected the path of a mounted file system"),
    ],
)
def test_addresses_that_are_refused(address, said):
    with pytest.raises(InputError) as caught:
        open_bundle(address)
    assert said in str(caught.value)
    assert "secret@" not in str(caught.value)
    assert "=secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("hf://me/model", "model"),
        ("hf://me/model@v1/small/bundle", "small"),
        ("gs://bucket/runs/demo/bundle", "demo"),
        ("https://h/model?$TOKEN", "model"),
        ("s3://bucket", "bucket"),
        ("s3://bundle/..", "bundle"),
    ],
)
def test_names_of_copies(address, name):
    assert bundle_name(address) == name


# ---- the room that copies take


def old_copy(cache, key, size, days):
    place = cache / key / "model"
    place.mkdir(parents=True)
    (place / "bundle.json").write_bytes(bytes(size))
    past = time.time() - days * 86400
    os.utime(cache / key, (past, past))
    return place


def test_copies_that_were_not_used_for_long_are_deleted(server, bundle, cache, monkeypatch):
    old, new = old_copy(cache, "a" * 16, 600_000, 3), old_copy(cache, "b" * 16, 600_000, 2)
    half = old_copy(cache, "c" * 16 + ".partial", 600_000, 4)
    monkeypatch.setenv(copied_bundles.LIMIT, "0.001")
    place = bundle_copy(on_hub(server, bundle))
    assert [path.exists() for path in (old, half, new, place)] == [False, False, True, True]


def test_copies_in_use_stay(server, bundle, cache, monkeypatch):
    used = old_copy(cache, "a" * 16, 600_000, 3)
    copied_bundles.CopiedBundles().use(used)
    monkeypatch.setenv(copied_bundles.LIMIT, "0")
    place = bundle_copy(on_hub(server, bundle))
    assert used.exists()
    assert place.exists()


def test_a_limit_that_is_no_number(server, bundle, monkeypatch):
    monkeypatch.setenv(copied_bundles.LIMIT, "much")
    with pytest.raises(InputError, match="COGVIEW_BUNDLES_GB = 'much': expected a number of GB"):
        bundle_copy(on_hub(server, bundle))


def test_a_cache_that_cannot_be_written(server, bundle, cache):
    cache.parent.parent.write_text("a file")
    with pytest.raises(InputError, match=f"^{HUB}: .*/cache/.*XDG_CACHE_HOME"):
        bundle_copy(on_hub(server, bundle))
