"""Captcha solutions are checked over real sockets with TLS."""

import pytest

from federation.protocol.errors import CaptchaInvalid
from homeserver.services.login.captcha import CaptchaUnavailable, CaptchaVerifier
from homeserver.services.plugins.hooks import Plugins
from tests.federation.conftest import loopback
from tests.helpers.loopback_servers import LoopbackServers, ok

__all__ = ["loopback"]

pytestmark = pytest.mark.reactor(60)
NAME = "captcha.example"


def _verify(request: bytes) -> bytes:
    form = request.partition(b"\r\n\r\n")[2]
    right = form == b"secret=our+secret&response=03solved"
    return ok(
        b'{"success": true}'
        if right
        else b'{"success": false, "error-codes": ["timeout-or-duplicate"]}'
    )


def _captcha(loopback: LoopbackServers, url: str) -> CaptchaVerifier:
    loopback.names.addresses[NAME] = ["127.0.0.1"]
    return CaptchaVerifier(
        web=loopback.client(),
        plugins=Plugins(),
        verify_url=url,
        site_key="site-key",
        secret="our secret",
    )


async def test_a_solution_is_checked(loopback: LoopbackServers) -> None:
    port = loopback.listen(_verify, NAME)
    captcha = _captcha(loopback, f"https://{NAME}:{port}/siteverify")
    await captcha.check_solution("03solved", "192.0.2.1")
    with pytest.raises(CaptchaInvalid):
        await captcha.check_solution("03guessed", "192.0.2.1")
    head = loopback.requests[0].partition(b"\r\n\r\n")[0]
    assert head.startswith(b"POST /siteverify HTTP/1.1")
    assert b"content-type: application/x-www-form-urlencoded" in head.lower()


@pytest.mark.parametrize(("scheme", "names"), [("http", ()), ("https", ("other.example",))])
async def test_the_secret_is_sent_only_to_the_captcha_service(
    loopback: LoopbackServers, scheme: str, names: tuple[str, ...]
) -> None:
    port = loopback.listen(_verify, *names)
    with pytest.raises(CaptchaUnavailable):
        await _captcha(loopback, f"{scheme}://{NAME}:{port}/siteverify").check_solution(
            "03solved", "192.0.2.1"
        )
    assert loopback.requests == []


async def test_an_endless_response_of_the_service_is_cut_off(loopback: LoopbackServers) -> None:
    port = loopback.listen(lambda _: ok(b" " * 70_000 + b'{"success": true}'), NAME)
    with pytest.raises(CaptchaUnavailable):
        await _captcha(loopback, f"https://{NAME}:{port}/siteverify").check_solution(
            "03solved", "192.0.2.1"
        )
