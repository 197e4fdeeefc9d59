"""Loads plug-ins and calls their hooks. Plug-ins can check passwords, refuse registrations and
logins, check captchas, send text messages and scan files.

A plug-in is a class that the operator names in `plugins` of the configuration. The class is called
with the plug-in's `config`. A method that is marked with `hookimpl` implements the hook of the same
name in `Hooks`. It may be `async`.

An exception is logged with its traceback. In a hook about files, an exception means that the file
cannot be scanned now. In any other hook, an exception fails the request with 500, so that nobody is
let in.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from importlib import import_module
from inspect import isawaitable
from typing import Any, Final, TypeVar, cast

import msgspec
import pluggy

T = TypeVar("T")

PROJECT: Final = "mahalla"
hookspec: Final = pluggy.HookspecMarker(PROJECT)
hookimpl: Final = pluggy.HookimplMarker(PROJECT)


class Person(msgspec.Struct, frozen=True):
    """The user whose password was checked."""

    source: str
    """The name of the user database, such as `campus`. It is part of every account link and must
    never change."""
    subject: str
    """The user's ID in that database. It must never change or be given to another user."""
    localpart: str
    """The localpart of a new account."""
    display_name: str | None = None
    emails: tuple[str, ...] = ()
    may_take_account: bool = False
    """Whether the user may take over an existing account of that name."""


class FileToCheck(msgspec.Struct, frozen=True):
    """A stored file, or the decrypted content of an encrypted one. It has no name and type, because
    the server cannot rely on those that the sender gives."""

    size: int
    """In bytes."""
    pieces: Callable[[], AsyncGenerator[bytes, None]]
    """Returns the content in pieces, from the start at each call. A file may be larger than
    memory."""


class Hooks:
    """The hooks that a plug-in may implement."""

    @hookspec
    def check_password(self, name: str, password: str) -> Awaitable[Person | None] | Person | None:
        """Return the user with this name and password; None if the plug-in does not know them.
        `name`: as typed, without the domain."""

    @hookspec
    def check_registration(
        self, username: str | None, emails: Sequence[str], address: str
    ) -> Awaitable[str | None] | str | None:
        """Return why this account must not be created, as a sentence for the user; None allows it.
        `address`: the client's IP address, "" if an identity provider vouches for the user. It is
        not called for accounts that administrators create."""

    @hookspec
    def check_sign_in(
        self, user_id: str, way: str, address: str
    ) -> Awaitable[str | None] | str | None:
        """Return why this user must not sign in now, as a sentence for the user; None allows it.
        `way`: `password`, `token` (of another client or an identity provider), `jwt`, `browser`,
        `application_password` or `application_service`."""

    @hookspec
    def check_captcha(self, solution: str, address: str) -> Awaitable[bool | None] | bool | None:
        """Return whether the solution of a captcha is right; None leaves it to
        `recaptcha_siteverify_api`. `address`: the client's IP address."""

    @hookspec
    def send_text_message(self, number: str, text: str) -> Awaitable[bool | None] | bool | None:
        """Send a text message and return True when it is on its way; None leaves it to
        `sms_gateway` of the configuration. `number`: digits that start with the country code."""

    @hookspec
    def check_file(self, file: FileToCheck) -> Awaitable[str | None] | str | None:
        """Return what is harmful in a file, in a word or two for administrators; None if nothing
        is. Each content is checked once, and again when the result of `get_file_rules` changes."""

    @hookspec
    def get_file_rules(self) -> str | None:
        """Return a text that changes with the rules for files, such as the version of a list."""


class Plugins:
    """All plug-ins, in the order of the configuration."""

    def __init__(self, plugins: Sequence[object] = ()) -> None:
        """Raises `ValueError` if a method of a plug-in does not match a hook."""
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(Hooks)
        try:
            for plugin in reversed(plugins):  # pluggy calls the last registered plug-in first
                self._manager.register(plugin)
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise ValueError(f"a plug-in does not match the hooks: {error}") from error
        self.check_passwords = bool(self._manager.hook.check_password.get_hookimpls())
        """Whether any plug-in checks passwords."""
        self.check_captchas = bool(self._manager.hook.check_captcha.get_hookimpls())
        """Whether any plug-in checks captchas."""
        self.send_text_messages = bool(self._manager.hook.send_text_message.get_hookimpls())
        """Whether any plug-in sends text messages."""
        self.check_files = bool(self._manager.hook.check_file.get_hookimpls())
        """Whether any plug-in checks files."""

    async def check_password(self, name: str, password: str) -> Person | None:
        """Return the first result."""
        return await _first(self._manager.hook.check_password(name=name, password=password))

    async def check_registration(
        self, username: str | None, emails: Sequence[str], address: str
    ) -> str | None:
        """Return the first objection."""
        return await _first(
            self._manager.hook.check_registration(
                username=username, emails=tuple(emails), address=address
            )
        )

    async def check_sign_in(self, user_id: str, way: str, address: str) -> str | None:
        """Return the first objection."""
        return await _first(
            self._manager.hook.check_sign_in(user_id=user_id, way=way, address=address)
        )

    async def check_captcha(self, solution: str, address: str) -> bool | None:
        """Return the first result."""
        return await _first(self._manager.hook.check_captcha(solution=solution, address=address))

    async def send_text_message(self, number: str, text: str) -> bool | None:
        """Return the first result."""
        return await _first(self._manager.hook.send_text_message(number=number, text=text))

    async def check_file(self, file: FileToCheck) -> str | None:
        """Return the first objection."""
        return await _first(self._manager.hook.check_file(file=file))

    def file_rules(self) -> str:
        """Return the rule texts of all plug-ins."""
        return " ".join(self._manager.hook.get_file_rules())


async def _first(results: Sequence[Awaitable[T | None] | T | None]) -> T | None:
    """Return the first result that is not None. Wait for all, so that every plug-in sees every
    call."""
    found: T | None = None
    for result in results:
        value = await cast(Awaitable[T | None], result) if isawaitable(result) else result
        found = value if found is None else found
    return found


def load_plugin(path: str, config: Mapping[str, Any]) -> object:
    """Create the plug-in at `package.module.Class` with its settings. Raises `ValueError`."""
    module, _, name = path.rpartition(".")
    try:
        plugin: object = getattr(import_module(module), name)(dict(config))
    except Exception as error:  # any exception of foreign code stops the start with a message
        raise ValueError(
            f"the plug-in {path} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return plugin
