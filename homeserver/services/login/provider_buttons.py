"""Buttons of the sign-in page that lead to identity providers, such as an institution's sign-in."""

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


class Providers(Protocol):
    """A kind of identity provider, such as OpenID Connect."""

    def buttons(self, next_path: str, *, again: bool) -> Sequence[ProviderButton]:
        """Return its buttons.

        `next_path`: the path of this server to open after the sign-in. `again`: the provider must
        authenticate the person even if it has a session for them.
        """
        ...


class SignInChoices:
    """The buttons of all providers, in display order."""

    def __init__(self, providers: Sequence[Providers] = ()) -> None:
        self._providers = tuple(providers)

    def buttons(self, next_path: str, *, again: bool) -> Sequence[ProviderButton]:
        """Return the buttons of all providers; see `Providers.buttons`."""
        return [
            button for each in self._providers for button in each.buttons(next_path, again=again)
        ]
