"""The address and key of the service, and the HTTP options, for both clients. Errors of httpx2 are translated here.

An address or key that is not given comes from the environment, then from the configuration file; an address also comes
from a `recovery up` that runs on `recovery-data` in this folder, and else is the default.
"""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from service.client.call import BrokenOffError, ClientError, UnreachableError

DEFAULT_URL = "http://127.0.0.1:8000"
URL_VARIABLE = "RECOVERY_URL"
KEY_VARIABLE = "RECOVERY_API_KEY"
DEFAULT_FOLDER = Path("recovery-data")
_TIMEOUT = httpx2.Timeout(10.0, read=180.0)
"""The long read timeout is for POST /sample, which answers when the samples are there."""
_FIELDS = ("url", "api_key")


@dataclass(frozen=True)
class Place:
    """The address and key of a service, and the source that named the address."""

    url: str
    source: str
    api_key: str | None = None


def config_file() -> Path:
    """Return the path of the user's configuration file, which may hold `url` and `api_key`."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "recovery" / "config.toml"


def find_place(url: str | None = None, api_key: str | None = None) -> Place:
    """Find the service that is meant. Raises ClientError for a configuration file that cannot be used.

    The file's key goes only to the file's address, because another server must not learn it.
    """
    file = _read_config()
    place = _place(url, file)
    key = api_key or os.environ.get(KEY_VARIABLE)
    if key is None and file.get("api_key") and place.url == file.get("url", DEFAULT_URL).rstrip("/"):
        key = file["api_key"]
    return Place(place.url, place.source, key)


def _place(url: str | None, file: dict[str, str]) -> Place:
    named = os.environ.get(URL_VARIABLE)
    if url and url != named:
        return Place(url.rstrip("/"), "given")
    if named:
        return Place(named.rstrip("/"), URL_VARIABLE)
    if "url" in file:
        return Place(file["url"].rstrip("/"), str(config_file()))
    endpoint = DEFAULT_FOLDER / "endpoint.json"
    try:
        return Place(str(json.loads(endpoint.read_text())["url"]), str(endpoint))
    except (OSError, ValueError, KeyError):  # no stack runs here, or one is just starting
        return Place(DEFAULT_URL, "the default")


def _read_config() -> dict[str, str]:
    path = config_file()
    try:
        found = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ClientError(f"{path} cannot be read ({error}); expected TOML with {' and '.join(_FIELDS)}") from None
    wrong = [name for name, value in found.items() if name not in _FIELDS or not isinstance(value, str)]
    if wrong:
        raise ClientError(f"{path} has {wrong[0]!r}; expected only {' and '.join(_FIELDS)}, both text")
    return found


class Address:
    """The base of both clients: the service's URL, and the options of an httpx2 client for it."""

    def __init__(self, url: str | None, api_key: str | None) -> None:
        place = find_place(url, api_key)
        self.url = place.url
        self.http_options: dict[str, Any] = {
            "base_url": place.url,
            "timeout": _TIMEOUT,
            # The proxies that the environment names are for the internet; calls to this machine would get lost there.
            "trust_env": False,
            "headers": {"Authorization": f"Bearer {place.api_key}"} if place.api_key else {},
        }

    def error_of(self, error: httpx2.TransportError | httpx2.InvalidURL) -> ClientError:
        """Translate an error of httpx2 into one that tells a person what to do."""
        match error:
            case httpx2.ConnectError() | httpx2.ConnectTimeout():
                return UnreachableError(f"nothing answers at {self.url}; start it with `recovery up`, or give --url")
            case httpx2.InvalidURL() | httpx2.UnsupportedProtocol():
                return ClientError(f"{self.url!r} is no address of a service; expected one like {DEFAULT_URL}")
            case _:
                return BrokenOffError(f"{self.url} broke off: {error or type(error).__name__}")
