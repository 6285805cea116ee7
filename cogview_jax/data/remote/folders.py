"""Folders at addresses: in a bucket, on the Hugging Face Hub, on a web server that lists them."""

from collections.abc import Collection, Iterator
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote, urljoin, urlsplit

from cogview_jax.data.remote.addresses import (
    PACKAGES,
    address_problem,
    choices,
    is_address_pattern,
    is_web,
    joined,
    protocol,
    without_query,
)
from cogview_jax.data.remote.failures import NotThere
from cogview_jax.data.remote.files import RemoteStatus, listed, read_whole
from cogview_jax.data.remote.hub import hub_folder, hub_problem, is_hub_address
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.paths import inside

#: The most bytes of a page that lists a folder, files in and below one, and folders in each other.
_PAGE, _FILES, _DEPTH = 16 << 20, 1_000_000, 16


def folder_problem(address: str) -> str:
    """What is wrong with the address of a folder that a user gave; empty where nothing is."""
    if is_hub_address(address):
        return hub_problem(address)
    if protocol(address) not in PACKAGES:
        return (
            "expected the path of a mounted file system, or an address that begins with hf://,"
            f" {choices()}"
        )
    if is_address_pattern(address) or "{" in address:
        return "expected the address of one folder, this is a pattern"
    return address_problem(address)


def file_in(folder: str, name: str) -> str:
    """The address of a file in a folder."""
    return hub_folder(folder).file(name) if is_hub_address(folder) else joined(folder, name)


class RemoteFile(NamedTuple):
    """A file of a folder: its address, and what is known of it, None where it was not asked for."""

    address: str
    status: RemoteStatus | None = None


def files_of(folder: str) -> dict[str, RemoteFile]:
    """The files in and below a folder, by their names in it, such as a/b.txt.

    Raises:
        InputError: the folder cannot be listed, or a name in the list leads out of it.
        SystemFault: the server goes on failing.
    """
    if is_hub_address(folder):
        files = {name: RemoteFile(file) for name, file in hub_folder(folder).files().items()}
    elif is_web(folder):
        names = _web_names(folder)
        files = {name: RemoteFile(joined(folder, name, of_listing=True)) for name in names}
    else:
        start = f"{folder.rstrip('/')}/"
        found = listed(start)
        files = {each.removeprefix(start): RemoteFile(each, found[each]) for each in found}
    if len(files) > _FILES:
        raise InputError(f"{folder}: more than {_FILES:,} files")
    for name in files:
        _check_name(folder, name, files)
    return files


def _check_name(folder: str, name: str, files: Collection[str]) -> None:
    """Refuses a name that would lead out of the folder, wherever its copy lies."""
    # a//b and a/./b would be a/b, too
    well = "\\" not in name and PurePosixPath(name).as_posix() == name
    try:
        inside(Path("/nowhere"), name)
    except InputError:
        well = False
    if not well:
        raise InputError(
            f"{folder}: its list of files has {name[:200]!r}, which is no name of a file in a"
            " folder: nothing of it is copied"
        )
    for parent in PurePosixPath(name).parents:
        if parent.as_posix() in files:
            raise InputError(f"{folder}: its list of files has {parent} both as file and as folder")


def _web_names(folder: str) -> Iterator[str]:
    """Yields the names in the pages by which a web server lists a folder and those below it."""
    ahead, base = [""], f"{without_query(folder).rstrip('/')}/"
    seen = {""}
    while ahead:
        below = ahead.pop()
        page = joined(folder, below, of_listing=True)
        try:
            text = read_whole(page, _PAGE).decode("utf-8", "replace")
        except NotThere as error:
            raise InputError(f"{error}; a web server has to list the folder: {_LISTS}") from None
        for name in _links(text, base, without_query(page)):
            if not name.endswith("/"):
                yield name
            elif name not in seen and name.count("/") <= _DEPTH and len(seen) < _FILES:
                seen.add(name)
                ahead.append(name)


def _links(text: str, base: str, page: str) -> Iterator[str]:
    """Yields what a page links to below `base`, as names within it; folders end with a slash."""
    reader = _LinkReader()
    reader.feed(text)
    for link in reader.links:
        try:
            found = urlsplit(urljoin(page, link))._replace(query="", fragment="").geturl()
        except ValueError:
            continue
        if found.startswith(base) and found != base:
            yield unquote(found.removeprefix(base))


class _LinkReader(HTMLParser):
    """Collects where the links of a page lead."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.links += [value for name, value in attrs if name == "href" and value]


_LISTS = "`autoindex on` does that in nginx; or put it into a bucket or on the Hub"
