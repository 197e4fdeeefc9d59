"""Converts the database section of the configuration for the storage layer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from homeserver.config.server import DatabaseOptions
from storage.engine.database import DatabaseConfig, PostgresConfig, SQLiteConfig

NOT_FOR_LIBPQ = frozenset(
    {"cp_min", "cp_max", "cp_reconnect", "cp_noisy", "cp_openfun", "cp_name", "database"}
)
"""Arguments in Synapse's configuration files that are for its connection pool, not for libpq."""


def read_database_config(section: DatabaseOptions, folder: Path) -> DatabaseConfig:
    """Return the database configuration. A relative SQLite path starts at `folder`; the default is
    `homeserver.db` there."""
    args: Mapping[str, Any] = section.args
    if section.name == "sqlite3":
        return SQLiteConfig(str(folder / str(args.get("database", "homeserver.db"))))
    connect: dict[str, str | int] = {
        name: value if isinstance(value, int) else str(value)
        for name, value in args.items()
        if name not in NOT_FOR_LIBPQ and value is not None
    }
    if "database" in args:
        connect.setdefault("dbname", str(args["database"]))
    if section.password is not None:
        connect["password"] = str(section.password)
    pool_min = int(args.get("cp_min", 1))
    return PostgresConfig(
        connect, pool_min=pool_min, pool_max=max(pool_min, int(args.get("cp_max", 8)))
    )
