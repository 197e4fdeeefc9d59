"""Creates the files of a new server: configuration and signing key. Overwrites nothing."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from federation.protocol.ids import is_server_name
from federation.protocol.signing import SigningKey, format_signing_keys, parse_signing_keys
from homeserver.config.configuration import Config
from homeserver.services.tokens.secret_tokens import RandomBytes

CONFIG_NAME = "homeserver.yaml"

INIT_CONFIG = """\
# Configuration of the homeserver {server_name}. docs/operators/configuration.md and
# homeserver.yaml.sample describe every option. `mahalla config check` checks this
# file.

server_name: {quoted_name}
{baseurl_line}
listeners:
  - port: 8008
    bind_addresses: ["::1", "127.0.0.1"]
    # Set this to true behind a reverse proxy, so that the addresses of clients are known.
    x_forwarded: false
    resources:
      - names: [client, federation]

# For more than a few hundred users, use PostgreSQL:
#   name: psycopg2
#   args: {{user: mahalla, dbname: mahalla, host: localhost, cp_min: 2, cp_max: 8}}
database:
  name: sqlite3
  args:
    database: homeserver.db

signing_key_path: {key_name}

# Create accounts with `mahalla create-user`. To let people register, set this to true,
# and `registration_requires_token: true`, or `enable_registration_without_verification: true` to
# let anybody register.
enable_registration: false
"""


class InitFailed(Exception):
    """A file cannot be created or read. `str()` says why."""


def write_init_files(
    folder: Path, server_name: str, public_baseurl: str | None, random: RandomBytes
) -> Sequence[Path]:
    """Create the folder, a configuration and a signing key; return the paths of the new files.

    An existing signing key is kept. Raises `InitFailed` and changes nothing if there is a
    configuration already; then use `write_missing_key`.
    """
    if not is_server_name(server_name):
        raise InitFailed(
            f"{server_name!r} is not a server name: use a host name, optionally with :PORT"
        )
    if public_baseurl and not public_baseurl.startswith(("https://", "http://")):
        raise InitFailed(
            f"{public_baseurl!r} is not a base URL: it must start with https:// or http://"
        )
    config = folder / CONFIG_NAME
    key = folder / f"{server_name}.signing.key"
    if config.exists():
        raise InitFailed(f"{config} already exists and was not changed")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    if not key.exists():
        _write_key(key, random)
        written.append(key)
    baseurl_line = f"public_baseurl: {json.dumps(public_baseurl)}\n" if public_baseurl else ""
    text = INIT_CONFIG.format(
        server_name=server_name,
        quoted_name=json.dumps(server_name),
        baseurl_line=baseurl_line,
        key_name=json.dumps(key.name),
    )
    _write_new(config, text, 0o600)
    return [*written, config]


def write_missing_key(config: Config, server_name: str, random: RandomBytes) -> Path:
    """Create the missing signing key that a configuration names; return its path.

    Raises `InitFailed` and changes nothing if the configuration is for another server, or if the
    key exists.
    """
    if config.server_name != server_name:
        raise InitFailed(
            f"there is already a configuration for {config.server_name} in {config.folder}"
        )
    key = config.signing_key_path
    if key.exists():
        raise InitFailed(f"{config.folder / CONFIG_NAME} already exists and was not changed")
    _write_key(key, random)
    return key


def _write_key(path: Path, random: RandomBytes) -> None:
    name = "a_" + random(3).hex()
    _write_new(path, format_signing_keys([SigningKey(name, random(32))]), 0o600)


def _write_new(path: Path, text: str, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read_signing_keys(path: Path) -> Sequence[SigningKey]:
    """Read a key file; the first key signs. Raises `InitFailed`."""
    try:
        return parse_signing_keys(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InitFailed(
            f"there is no signing key {path}: restore it from your backup; for a new server, "
            "`mahalla init SERVER_NAME --folder FOLDER` creates it"
        ) from error
    except (OSError, ValueError) as error:
        raise InitFailed(f"the signing key {path} cannot be read: {error}") from error
