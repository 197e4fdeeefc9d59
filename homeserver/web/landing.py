"""The page at `/`: says that the server works, and how to sign in. It loads nothing and runs no script."""

from base64 import b64encode
from hashlib import sha256
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from federation.protocol.endpoint import Auth, endpoint
from homeserver.http.answers import Response

STYLE: Final = "landing.css"


class LandingPage:
    """The page and its headers, made once."""

    def __init__(self, server_name: str, address: str | None, *, registration_open: bool) -> None:
        """`address`: what people enter in their client; None: the server's name does, or the administrator knows."""
        environment = Environment(
            loader=PackageLoader("homeserver.web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        loader = environment.loader
        assert loader is not None
        style = loader.get_source(environment, STYLE)[0]
        page = environment.get_template("landing.html").render(
            server_name=server_name, address=address, registration_open=registration_open, style=style
        )
        style_hash = b64encode(sha256(style.encode()).digest()).decode()
        self.response = Response(
            headers={
                "Content-Type": "text/html; charset=utf-8",
                "Content-Security-Policy": (
                    f"default-src 'none'; style-src 'sha256-{style_hash}'; base-uri 'none'; form-action 'none'; "
                    "frame-ancestors 'none'"
                ),
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
            },
            body=page.encode(),
        )


@endpoint("GET", "/", auth=Auth.NONE)
async def get_landing(page: LandingPage) -> Response:
    """HTML, the same for everybody."""
    return page.response
