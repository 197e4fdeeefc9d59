"""Configuration of the PostgreSQL connections: address, timeouts, plans, keepalives."""

from collections.abc import Mapping

import msgspec
from psycopg2.extensions import make_dsn


class PostgresConfig(msgspec.Struct, frozen=True):
    """The location of the server, and limits for this process."""

    connect: Mapping[str, str | int]
    """Connection parameters of libpq: `host`, `port`, `dbname`, `user`, `password`, `sslmode`, …"""
    pool_min: int = 1
    """Read connections that are opened at start."""
    pool_max: int = 8
    """The most read connections, each with its own thread."""
    statement_timeout: float = 60.0
    """Seconds after which the server cancels a statement."""
    write_lock_timeout: float = 30.0
    """Seconds that a batch waits for the write lock of another node. The server ends a batch whose
    node is silent for a third of this time. So a hanging node loses the lock before the waiting
    nodes time out."""


def make_connection_string(config: PostgresConfig, settings: Mapping[str, str | int]) -> str:
    """Return the connection string for libpq. `settings` are server settings of this session."""
    settings = {
        "statement_timeout": int(config.statement_timeout * 1000),
        "bytea_output": "hex",
        "standard_conforming_strings": "on",
        "jit": "off",
        # one plan for all arguments: the statements are written for it, as SQLite has nothing else
        "plan_cache_mode": "force_generic_plan",
        **settings,
    }
    parameters: dict[str, str | int] = {
        "application_name": "mahalla",
        "connect_timeout": 5,
        # A node must notice within half a minute that the server has silently disappeared.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20000,
        **config.connect,
    }
    own = " ".join(f"-c {name}={value}" for name, value in settings.items())
    parameters["options"] = f"{parameters.get('options', '')} {own}".strip()
    return make_dsn(None, **parameters)
