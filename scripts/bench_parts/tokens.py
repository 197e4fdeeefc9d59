"""What it costs to find out whose a token is, and to sign in, in one process without a network: a
token that is remembered, one that is not, a sign-in by the OAuth 2.0 API without the password
(code, tokens), a renewal.

The password is left out: it costs what `bcrypt_rounds` says, in threads of its own.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from bench_parts.rounds import best
from federation.api.request import RequestContext
from tests.helpers.browser import Browser
from tests.helpers.databases import copy_sqlite, make_sqlite_template, open_inline
from tests.helpers.oauth import CONFIG, Program
from tests.helpers.server import TestServer


def main() -> int:
    """Measure, and print."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        template = make_sqlite_template(folder)
        (folder / "server").mkdir()
        server = TestServer(
            folder / "server", open_inline(copy_sqlite(template, folder / "server")), CONFIG
        )
        alice = server.register("alice")
        program, browser = Program(server), Browser(server)
        tokens = server.app.accounts.access_tokens
        context = RequestContext("1", "GET", "/", "127.0.0.1", "bench")

        def check() -> None:
            step = tokens.get_requester(alice.token, context)
            try:
                step.send(None)
            except StopIteration:
                return
            raise AssertionError("the server had to wait for something")

        def check_anew() -> None:
            tokens._forget(alice.user_id)
            check()

        def renew() -> None:
            answer = program.refresh()
            program.tokens = answer.json
            server.run(tokens.get_requester(str(program.tokens["access_token"]), context))

        check()
        best("a token that is remembered", 20_000, check)
        best("a token that is not: one query", 1000, check_anew)
        program.sign_in(browser)
        best(
            "a sign-in by an app: page, code, tokens",
            20,
            lambda: program.exchange(program.code(browser)),
        )
        program.sign_in(browser)
        best("a renewal, with the first use of what it gives", 50, renew)
    return 0


if __name__ == "__main__":
    sys.exit(main())
