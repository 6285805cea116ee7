"""How a server is set up: what it loads, where it listens, and what a client may ask for."""

import ipaddress
from dataclasses import dataclass

from cogview_jax.runtime.bounds import need_count
from cogview_jax.runtime.errors import InputError

#: The environment variable that holds the key which clients have to send.
KEY_VARIABLE = "COGVIEW_API_KEY"


@dataclass(frozen=True)
class Limits:
    """What one client, and all together, may ask for.

    Attributes:
        images: that one request samples, candidates among them.
        waiting: images that wait for rows, of all requests.
        seconds: that a request may take.
        requests_per_minute: of one address.
        body: bytes of a request without files.
        upload: bytes of a request with files.
        pixels: of an image that is uploaded.
    """

    images: int = 16
    waiting: int = 256
    seconds: float = 300.0
    requests_per_minute: int = 600
    body: int = 1 << 20
    upload: int = 32 << 20
    pixels: int = 20_000_000

    def __post_init__(self) -> None:
        need_count("--most_images", self.images, 1024)
        need_count("--most_waiting", self.waiting, 65_536)
        need_count("--requests_per_minute", self.requests_per_minute, 1_000_000)
        if not 0 < self.seconds <= 86_400:
            raise InputError(f"--seconds {self.seconds}: expected above 0, at most 86400")


@dataclass(frozen=True)
class Address:
    """Where the server listens, and the key that clients have to send.

    Attributes:
        host: an address of this machine.
        port: 0 for any that is free.
        key: None where none is needed.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = None

    def __post_init__(self) -> None:
        if not self.local and not self.key:
            raise InputError(
                f"--host {self.host} lets other machines in: set {KEY_VARIABLE} to a key that"
                " clients send, or leave it at 127.0.0.1"
            )
        if self.key is not None and (len(self.key) < 16 or not self.key.isascii()):
            raise InputError(f"{KEY_VARIABLE}: expected at least 16 ASCII characters")

    @property
    def local(self) -> bool:
        """Whether only programs of this machine reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
