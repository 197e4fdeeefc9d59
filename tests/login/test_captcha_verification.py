"""Captcha solutions are checked over real sockets with TLS."""

import pytest

from federation.protocol.errors import CaptchaInvalid
from homeserver.services.login.captcha import CaptchaUnavailable, CaptchaVerifier
from homeserver.services.plugins.hooks import Plugins
from tests.federation.conftest import hosts
from tests.helpers.loopback_servers import LoopbackServers, ok

__all__ = ["hosts"]

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


def _captcha(hosts: LoopbackServers, url: str) -> CaptchaVerifier:
    hosts.names.addresses[NAME] = ["127.0.0.1"]
    return CaptchaVerifier(
        web=hosts.client(),
        plugins=Plugins(),
        verify_url=url,
        site_key="site-key",
        secret="our secret",
    )


async def test_a_solution_is_checked(hosts: LoopbackServers) -> None:
    port = hosts.listen(_verify, NAME)
    captcha = _captcha(hosts, f"https://{NAME}:{port}/siteverify")
    await captcha.check_solution("03solved", "192.0.2.1")
    with pytest.raises(CaptchaInvalid):
        await captcha.check_solution("03guessed", "192.0.2.1")
    head = hosts.requests[0].partition(b"\r\n\r\n")[0]
    assert head.startswith(b"POST /siteverify HTTP/1.1")
    assert b"content-type: application/x-www-form-urlencoded" in head.lower()


@pytest.mark.parametrize(("scheme", "names"), [("http", ()), ("https", ("other.example",))])
async def test_the_secret_is_sent_only_to_the_captcha_service(
    hosts: LoopbackServers, scheme: str, names: tuple[str, ...]
) -> None:
    port = hosts.listen(_verify, *names)
    with pytest.raises(CaptchaUnavailable):
        await _captcha(hosts, f"{scheme}://{NAME}:{port}/siteverify").check_solution(
            "03solved", "192.0.2.1"
        )
    assert hosts.requests == []


async def test_an_endless_response_of_the_service_is_cut_off(hosts: LoopbackServers) -> None:
    port = hosts.listen(lambda _: ok(b" " * 70_000 + b'{"success": true}'), NAME)
    with pytest.raises(CaptchaUnavailable):
        await _captcha(hosts, f"https://{NAME}:{port}/siteverify").check_solution(
            "03solved", "192.0.2.1"
        )
