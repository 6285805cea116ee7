"""Local copies of small files at addresses, such as listings."""

import hashlib
import os

from cogview_jax.data.remote.addresses import without_query
from cogview_jax.data.remote.files import read_whole
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import reason
from cogview_jax.runtime.files import write_file
from cogview_jax.runtime.paths import user_cache

#: The folder in the user's cache.
COPIES = "cogview_jax/listings"


def local_copy(address: str, limit: int) -> str:
    """The path of a copy of a file, called as the file is; it is fetched anew each time.

    The copy lies under the hash of its bytes, so that nobody who reads an older one is disturbed.

    Args:
        address: of the file.
        limit: the most bytes that it may have.

    Raises:
        NotThere: there is none.
        InputError: it is larger, cannot be read, or no copy can be written.
        SystemFault: the server goes on failing.
    """
    data = read_whole(address, limit)
    name = os.path.basename(without_query(address))
    path = user_cache() / COPIES / hashlib.sha256(data).hexdigest()[:32] / name
    try:
        if not path.is_file() or path.read_bytes() != data:
            write_file(path, lambda temporary: temporary.write_bytes(data))
    except OSError as error:
        raise InputError(f"{path}: {reason(error)}: {address} is copied there") from None
    return str(path)
