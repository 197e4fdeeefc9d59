"""Loads the worked examples in `vectors/`, and the key that they are signed with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from federation.protocol.signing import SigningKey, decode_base64

_FOLDER = Path(__file__).parent / "vectors"


def load(file: str, group: str) -> Any:
    return json.loads((_FOLDER / f"{file}.json").read_text(encoding="utf-8"))[group]


def cases(file: str, group: str) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = load(file, group)["cases"]
    return found


def signing_key() -> SigningKey:
    """The key `ed25519:1` of the specification's examples."""
    return SigningKey("1", decode_base64(load("signing", "signing_key")["seed_base64"]))
