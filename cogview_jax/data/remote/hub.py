"""The Hugging Face Hub: addresses hf://OWNER/NAME[@REVISION][/FOLDER], and whom requests are from.

Its files are those of a web server, and are listed by one more request. The environment says which
server it is (HF_ENDPOINT, for a mirror) and whose token is sent (HF_TOKEN). The token goes to that
server only, not to those that it passes a request on to.
"""

import json
import re
from typing import NamedTuple
from urllib.parse import quote, unquote

from cogview_jax.data.remote.files import read_whole
from cogview_jax.data.remote.hub_server import endpoint
from cogview_jax.runtime.errors import InputError

SCHEME = "hf://"
FORM = "hf://OWNER/NAME[@REVISION][/FOLDER]"
#: A revision is a branch, a tag (a slash in it is written %2F), a commit, or of a pull request.
_ADDRESS = re.compile(
    r"hf://(?P<repository>[\w.-]+/[\w.-]+)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[^/@]+|[^/@]+))?(?:/(?P<folder>.*))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
#: The most bytes of a list of files.
_LIMIT = 64 << 20


class HubFolder(NamedTuple):
    """A folder of a repository; `folder` is empty for its root, or a/b."""

    repository: str
    revision: str
    folder: str

    def file(self, name: str) -> str:
        """The web address of a file in the folder."""
        return f"{endpoint()}/{self.repository}/resolve/{self._revision}/{quote(self._path(name))}"

    def files(self) -> dict[str, str]:
        """The names of all files in and below the folder, and their web addresses.

        The addresses are those of one commit, whatever is pushed in the meantime.

        Raises:
            NotThere: there is no such repository or revision.
            InputError: it cannot be read.
            SystemFault: the server goes on failing.
        """
        url = f"{endpoint()}/api/models/{self.repository}/revision/{self._revision}"
        try:
            found = json.loads(read_whole(url, _LIMIT))
            commit, names = found["sha"], [each["rfilename"] for each in found["siblings"]]
            well = _COMMIT.fullmatch(commit) and all(isinstance(name, str) for name in names)
        except (ValueError, TypeError, KeyError, RecursionError):
            well = False
        if not well:
            raise InputError(f"{url}: expected a list of files, the server sent something else")
        pinned, start = self._replace(revision=commit), self._path("")
        within = [name.removeprefix(start) for name in names if name.startswith(start)]
        return {name: pinned.file(name) for name in within}

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return bool(_COMMIT.fullmatch(self.revision))

    @property
    def _revision(self) -> str:
        return quote(self.revision, safe="")

    def _path(self, name: str) -> str:
        return f"{self.folder}/{name}" if self.folder else name


def is_hub_address(address: str) -> bool:
    """Whether an address begins with hf://."""
    return address.startswith(SCHEME)


def hub_problem(address: str) -> str:
    """What is wrong with an hf:// address, in words; empty where nothing is."""
    found = _ADDRESS.fullmatch(address)
    parts = (found["folder"] or "").rstrip("/").split("/") if found else []
    if found is None or {".", ".."} & {*parts, *found["repository"].split("/")}:
        return f"expected {FORM}"
    return ""


def hub_folder(address: str) -> HubFolder:
    """The folder that an hf:// address without a problem names."""
    found = _ADDRESS.fullmatch(address)
    assert found is not None, "`hub_problem` comes first"
    revision = unquote(found["revision"] or "main")
    return HubFolder(found["repository"], revision, (found["folder"] or "").strip("/"))
