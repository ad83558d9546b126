"""Secrets of the local stack: made at random at its first start, readable by their owner only."""

import base64
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from deploy.local.settings import LocalSettings

_OWNER_ONLY = 0o600


def stack_secrets(settings: LocalSettings) -> dict[str, str]:
    """The secrets by the name of their environment variable: what is set, else what is kept in the data folder."""
    folder = settings.data_dir
    given = {
        "DEMO_API_KEY": settings.demo_api_key,
        "VAULT_KEY": settings.vault_key,
        "INTERNAL_TOKEN": settings.internal_token,
    }
    makers: dict[str, tuple[str, Callable[[], str]]] = {
        "DEMO_API_KEY": ("demo-key", lambda: "pu_" + secrets.token_urlsafe(32)),
        "VAULT_KEY": ("vault-key", lambda: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()),
        "INTERNAL_TOKEN": ("internal-token", lambda: secrets.token_urlsafe(32)),
    }
    result = {}
    for name, (file, make) in makers.items():
        value = given[name]
        result[name] = value.get_secret_value() if value else _kept(folder / file, make)
    return result


def _kept(file: Path, make: Callable[[], str]) -> str:
    if file.is_file():
        kept = file.read_text().strip()
        if kept:
            return kept
        file.unlink()
    secret = make()
    descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _OWNER_ONLY)
    with os.fdopen(descriptor, "w") as handle:
        handle.write(secret + "\n")
        handle.flush()
        os.fsync(handle.fileno())
    return secret
