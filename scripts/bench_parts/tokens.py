"""Measures authentication in one process without a network: a cached token, an uncached token, a
login with the OAuth 2.0 API (code, tokens), and a refresh.

Checking passwords is not included: its cost depends on `bcrypt_rounds`, and it runs in threads of
its own.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from bench_parts.timing import best
from federation.api.request import RequestContext
from tests.helpers.browser import Browser
from tests.helpers.databases import copy_sqlite, make_sqlite_template, open_inline
from tests.helpers.oauth import CONFIG, Program
from tests.helpers.server import TestServer

UNLIMITED = "rc_refresh: {account: {per_second: 10000, burst_count: 10000}}\n"


def main() -> int:
    """Measure and print everything."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        template = make_sqlite_template(folder)
        (folder / "server").mkdir()
        database = open_inline(copy_sqlite(template, folder / "server"))
        server = TestServer(folder / "server", database, CONFIG + UNLIMITED)
        alice = server.register("alice")
        program, browser = Program(server), Browser(server)
        tokens = server.app.accounts.access_tokens
        context = RequestContext("1", "GET", b"/", "127.0.0.1", {b"user-agent": b"bench"})

        def check() -> None:
            step = tokens.get_requester(alice.token, context)
            try:
                step.send(None)
            except StopIteration:
                return
            raise AssertionError("the coroutine waited")

        def check_uncached() -> None:
            tokens.cache.clear()
            check()

        def refresh() -> None:
            answer = program.refresh()
            program.tokens = answer.json
            server.run(tokens.get_requester(str(program.tokens["access_token"]), context))

        check()
        best("a cached token", 20_000, check)
        best("an uncached token: one query", 1000, check_uncached)
        program.sign_in(browser)
        best(
            "a login of an app: page, code, tokens",
            20,
            lambda: program.exchange(program.code(browser)),
        )
        program.sign_in(browser)
        best("a refresh, with the first use of the new token", 50, refresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
