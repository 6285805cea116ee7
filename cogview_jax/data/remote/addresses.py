"""Addresses of files on other machines: which ones are read, and where two of them lie together.

No address ever holds a secret: what may be one, a name with a password or a query, is refused, and
a query can be named by a variable of the environment. So an address may be printed, and written to
config.json and to an index.
"""

import importlib.util
import itertools
import os
import re
from collections.abc import Sequence
from urllib.parse import quote, urlsplit

from cogview_jax.runtime.errors import InputError

#: The protocols that are read, and the package that fsspec needs for each.
PACKAGES = {"https": "aiohttp", "http": "aiohttp", "gs": "gcsfs", "s3": "s3fs"}
#: What to do where one is missing.
INSTALLATION = "install it with `pip install 'cogview-jax[remote]'`"
#: Those of plain web servers, which list no folders.
WEB = ("https", "http")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
#: A query that a variable of the environment holds.
_QUERY = re.compile(r"\?\$([A-Za-z_]\w*)$")
_SIGNS = re.compile(r"[*?[]")


def is_address(path: str) -> bool:
    """Whether a path is an address of any protocol, and no path of a file system."""
    return bool(_ADDRESS.match(path))


def protocol(address: str) -> str:
    """The protocol of an address: "https"."""
    return address.partition("://")[0]


def is_web(address: str) -> bool:
    """Whether a plain web server answers."""
    return protocol(address) in WEB


def address_problem(address: str) -> str:
    """What is wrong with an address that a user gave, in words; empty where nothing is."""
    if protocol(address) not in PACKAGES:
        return f"expected the path of a file, or an address that begins with {choices()}"
    try:
        parts = urlsplit(address)
        host = parts.netloc
    except ValueError as error:
        return f"no address ({error})"
    if "@" in host:
        return (
            "a password in an address would be written to config.json: leave it out, and put it"
            " into ~/.netrc"
        )
    if not host:
        return "an address without the name of a server or a bucket"
    if not is_web(address):
        return ""
    if "#" in address:
        return "a web address of a file has no # in it: write %23"
    if "*" in address:
        return (
            "a web server lists no files: write a range, as {00000..00041}, or name the addresses"
            " with commas between them"
        )
    if "?" in address and not _QUERY.search(address):
        return (
            "a query may hold a secret, and would be written to config.json: keep it in a variable"
            " of the environment, and write ?$NAME"
        )
    return ""


def shown(address: str) -> str:
    """An address as messages may say it, without what may be a secret in one that is refused."""
    return re.sub(r"\?(?!\$).*$", "?...", re.sub(r"//[^/]*@", "//...@", address))


def choices() -> str:
    """The beginnings of addresses that are read, for messages."""
    return ", ".join(f"{name}://" for name in PACKAGES)


def require_packages(address: str) -> None:
    """InputError unless the packages are installed that read an address."""
    for package in ("fsspec", PACKAGES[protocol(address)]):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"{protocol(address)}:// needs the package {package}: {INSTALLATION}")


def requested(address: str) -> str:
    """The address as it is asked for, with the query that a variable of the environment holds.

    Raises:
        InputError: there is no such variable.
    """
    found = _QUERY.search(address) if is_web(address) else None
    if found is None:
        return address
    if found[1] not in os.environ:
        raise InputError(f"{address}: the variable {found[1]} of the environment is not set")
    return f"{address[: found.start()]}?{os.environ[found[1]].removeprefix('?')}"


def without_query(address: str) -> str:
    """The address without `?$NAME`, as its file is called."""
    return _QUERY.sub("", address) if is_web(address) else address


def is_address_pattern(address: str) -> bool:
    """Whether an address is a pattern, which any number of files may match."""
    return not is_web(address) and bool(_SIGNS.search(address))


def joined(folder: str, name: str, *, of_listing: bool = False) -> str:
    """The address of a file in a folder.

    Args:
        folder: its address; a query of it is that of the file, too.
        name: that of the file, as addresses have it.
        of_listing: whether a file of others names it. It is then a path within the folder, and
            whatever it holds leads nowhere else.
    """
    if of_listing and is_web(folder):
        name = quote(name)
    path = without_query(folder)
    return f"{path.rstrip('/')}/{name}{folder[len(path) :]}"


def folder_of(address: str) -> str:
    """The address of the folder in or below which a file, or all matches of a pattern, lie."""
    if is_address_pattern(address):
        found = _SIGNS.search(address)
        assert found is not None
        address = address[: found.start()]
    start, slashes, rest = without_query(address).partition("://")
    folder = rest.rpartition("/")[0] or rest
    return f"{start}{slashes}{folder}"


def common_folder(folders: Sequence[str]) -> str:
    """The address of the folder that all folders lie in.

    Raises:
        InputError: they are of several servers or buckets.
    """
    parts = [folder.split("/") for folder in folders]
    alike = itertools.takewhile(lambda each: len({*each}) == 1, zip(*parts, strict=False))
    common = [part for part, *_ in alike]
    if len(common) < 3:
        one, other = ("/".join(each[:3]) for each in (min(parts), max(parts)))
        raise InputError(f"expected files of one server or bucket, these are of {one} and {other}")
    return "/".join(common)
