"""Buttons on the sign-in page. Each starts the sign-in with an identity provider."""

from collections.abc import Sequence
from typing import Protocol

import msgspec


class ProviderButton(msgspec.Struct, frozen=True):
    """A button of the sign-in page."""

    name: str
    """The text as the operator configured it; not translated."""
    link: str
    """A path of this server, with its query."""
    icon: str | None = None
    """The path of an image on this server, shown 24 pixels high."""


class ButtonProvider(Protocol):
    """A kind of identity provider, such as OpenID Connect."""

    def buttons(self, next_path: str, *, reauthenticate: bool) -> Sequence[ProviderButton]:
        """Return its buttons.

        `next_path`: the path of this server to open after the sign-in. `reauthenticate`: the
        provider must authenticate the person even if it has a session for them.
        """
        ...


class ProviderButtons:
    """The buttons of all providers, in display order."""

    def __init__(self, providers: Sequence[ButtonProvider] = ()) -> None:
        self._providers = tuple(providers)

    def buttons(self, next_path: str, *, reauthenticate: bool) -> Sequence[ProviderButton]:
        """Return the buttons of all providers; see `ButtonProvider.buttons`."""
        return [
            button
            for each in self._providers
            for button in each.buttons(next_path, reauthenticate=reauthenticate)
        ]
