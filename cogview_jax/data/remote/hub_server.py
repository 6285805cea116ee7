"""The server of the Hugging Face Hub: where it is, the user's token for it, what it answers."""

import os
from collections.abc import Mapping

ENDPOINT, TOKEN = "HF_ENDPOINT", "HF_TOKEN"
#: What it means by its header X-Error-Code.
_CODES = {
    "RepoNotFound": "no such repository, or a private one",
    "RevisionNotFound": "no such revision",
    "EntryNotFound": "no such file",
    "GatedRepo": "its owner grants access on its page",
}


def endpoint() -> str:
    """Its URL, or that of the mirror in the variable HF_ENDPOINT."""
    return (os.environ.get(ENDPOINT) or "https://huggingface.co").rstrip("/")


def is_of_hub(url: str) -> bool:
    """Whether it answers requests for a URL."""
    return url.startswith(f"{endpoint()}/")


def authorization(url: str) -> dict[str, str]:
    """The headers that say whose request for a URL it is; empty of other servers.

    aiohttp leaves this header out where it is sent on to another server.
    """
    token = os.environ.get(TOKEN, "").strip()
    return {"Authorization": f"Bearer {token}"} if token and is_of_hub(url) else {}


def refusal_advice() -> str:
    """What to do where it refuses."""
    if os.environ.get(TOKEN, "").strip():
        return f"the token in {TOKEN} may not read it: check the address, or take another token"
    return f"check the address; what is private or gated needs a token, in the variable {TOKEN}"


def error_code(headers: Mapping[str, str]) -> str:
    """What a header of its answer says of an error, in words; empty where it says nothing."""
    return _CODES.get(headers.get("X-Error-Code", ""), "")
