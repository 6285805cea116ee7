"""Bundles at addresses: copied whole or not at all, verified, and only asked about again."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cogview_jax.checkpoints import bundle_folder
from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.remote_bundle import bundle_copy
from cogview_jax.checkpoints.step_bundle import located, open_bundle
from cogview_jax.data.remote import download
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.files import sha256_tree
from served_bundles import (
    COMMIT,
    HUB,
    RESOLVE,
    again,
    assert_copied,
    names_in,
    on_hub,
    on_web,
    paths_asked,
)

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
