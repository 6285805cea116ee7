"""What a server may not name, whom it refuses, and addresses that are none."""

import shutil

import pytest

from cogview_jax.checkpoints.remote_bundle import bundle_copy, bundle_name
from cogview_jax.checkpoints.step_bundle import open_bundle
from cogview_jax.data.remote import files
from cogview_jax.runtime.errors import InputError
from file_server import FileServer
from served_bundles import COMMIT, HUB, RESOLVE, again, assert_copied, names_in, on_hub, on_web

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
    files.file_system.cache_clear()
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
