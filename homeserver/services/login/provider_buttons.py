"""The buttons of the sign-in page that lead elsewhere: to an institution's own sign-in service, for
example."""

from collections.abc import Sequence
from typing import Protocol

import msgspec


class ProviderButton(msgspec.Struct, frozen=True):
    """One button."""

    name: str
    """As people know it, in the language of whoever runs the server: it is shown as it is."""
    link: str
    """A path of this server, with its query."""
    icon: str | None = None
    """A path of this server where an image is, shown 24 pixels high."""


class Providers(Protocol):
    """Something by which people sign in."""

    def buttons(self, next_path: str, *, again: bool) -> Sequence[ProviderButton]:
        """Its buttons; who is signed in by one goes on to `next_path`, which is a path of this
        server. `again`: also whom the provider knows already is to prove who they are."""
        ...


class SignInChoices:
    """All of them, in the order in which they are shown."""

    def __init__(self, providers: Sequence[Providers] = ()) -> None:
        self._providers = tuple(providers)

    def buttons(self, next_path: str, *, again: bool) -> Sequence[ProviderButton]:
        """As `Providers.buttons`."""
        return [
            button for each in self._providers for button in each.buttons(next_path, again=again)
        ]
