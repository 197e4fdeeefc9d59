"""Where the PostgreSQL server is, and how a session there is to be: time limits, plans, signs of
life."""

from collections.abc import Mapping

import msgspec
from psycopg2.extensions import make_dsn


class PostgresConfig(msgspec.Struct, frozen=True):
    """Where the server is, and how much of it this process uses."""

    connect: Mapping[str, str | int]
    """libpq's parameters: `host`, `port`, `dbname`, `user`, `password`, `sslmode`, …"""
    pool_min: int = 1
    """Reading connections that are opened at start."""
    pool_max: int = 8
    """Reading connections at most, each with its thread."""
    statement_timeout: float = 60.0
    """Seconds after which the server gives up a statement."""
    write_lock_timeout: float = 30.0
    """Seconds a batch waits for another node's. The server ends a batch whose node is silent for a
    third of that (it hangs, and what it holds others wait for), so that who waits for it does not
    give up first."""


def describe(config: PostgresConfig, settings: Mapping[str, str | int]) -> str:
    """What libpq is to connect to; `settings` are the server's, for this session."""
    settings = {
        "statement_timeout": int(config.statement_timeout * 1000),
        "bytea_output": "hex",
        "standard_conforming_strings": "on",
        "jit": "off",
        # one plan for all arguments: the statements are written for that, since SQLite knows no
        # other
        "plan_cache_mode": "force_generic_plan",
        **settings,
    }
    parameters: dict[str, str | int] = {
        "application_name": "mahalla",
        "connect_timeout": 5,
        # A node must notice within half a minute that the server is gone without a word.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20000,
        **config.connect,
    }
    own = " ".join(f"-c {name}={value}" for name, value in settings.items())
    parameters["options"] = f"{parameters.get('options', '')} {own}".strip()
    return make_dsn(None, **parameters)
