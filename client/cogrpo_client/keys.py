"""Where the SDK finds an API key when the caller gives none."""

import ipaddress
import json
import os
from pathlib import Path

import httpx

KEY_VARIABLE = "COGRPO_API_KEY"
KEY_FILE_VARIABLE = "COGRPO_KEY_FILE"
DATA_DIR_VARIABLE = "COGRPO_DATA_DIR"
KEY_FILE_NAME = "keys.json"


def is_loopback(base_url: httpx.URL) -> bool:
    """Whether the URL's host is this machine itself."""
    if base_url.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(base_url.host).is_loopback
    except ValueError:
        return False


def find_api_key(base_url: httpx.URL, scope: str = "generate") -> str | None:
    """The key from COGRPO_API_KEY; for a service on this machine also from the key file it made.

    The file is COGRPO_KEY_FILE, or keys.json in COGRPO_DATA_DIR (./data by default). It is never
    read for a remote service. None when there is no key with the scope.
    """
    if key := os.environ.get(KEY_VARIABLE):
        return key
    if not is_loopback(base_url):
        return None
    path = os.environ.get(KEY_FILE_VARIABLE)
    file = Path(path) if path else Path(os.environ.get(DATA_DIR_VARIABLE) or "data") / KEY_FILE_NAME
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))["keys"]
        return next((str(entry["key"]) for entry in entries if scope in entry["scopes"]), None)
    except (OSError, ValueError, KeyError, TypeError):
        return None
