"""A plug-in that refuses sign-ins: outside of office hours only from the institution's own
network."""

import time
from ipaddress import ip_address, ip_network

from homeserver.services.plugins.hooks import hookimpl


class OfficeHours:
    """`from` and `until` are hours; `network` is where people may sign in at any time."""

    def __init__(self, config: dict[str, object]) -> None:
        self._hours = range(int(str(config["from"])), int(str(config["until"])))
        self._network = ip_network(str(config["network"]))

    @hookimpl
    def check_sign_in(self, user_id: str, way: str, address: str) -> str | None:
        if time.localtime().tm_hour in self._hours or (
            address and ip_address(address) in self._network
        ):
            return None
        return "Outside of office hours you can sign in from the office only"
