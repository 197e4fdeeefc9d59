"""What plug-ins of an institution may do: say whose a password is, refuse accounts and sign-ins,
check riddles, send text messages, look into files.

A plug-in is a class that is named in `plugins` of the configuration; it is made with its `config`
and has methods that are marked with `hookimpl` and called as in `Hooks`. A method may be `async`.
What it raises is a fault: the request ends with 500, nobody is let in, and the log has the
traceback.
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
    """Whose a password is."""

    source: str
    """What knows these people, such as `campus`: part of every link, never to be changed."""
    subject: str
    """Who it is there; never changes, and is never given to another."""
    localpart: str
    """The name of a new account."""
    display_name: str | None = None
    emails: tuple[str, ...] = ()
    may_take_account: bool = False
    """Whether an account of that name that was made otherwise is theirs."""


class FileToCheck(msgspec.Struct, frozen=True):
    """A file as it is kept, or what is inside of an encrypted one, whose name and type nobody knows
    for certain."""

    size: int
    """In bytes."""
    pieces: Callable[[], AsyncGenerator[bytes, None]]
    """Its bytes, from the first to the last, for whoever calls this; a file may be longer than
    memory is."""


class Hooks:
    """What a plug-in may implement."""

    @hookspec
    def check_password(self, name: str, password: str) -> Awaitable[Person | None] | Person | None:
        """Whose name and password these are; None: not known here. `name`: as it was typed, without
        the domain."""

    @hookspec
    def check_registration(
        self, username: str | None, emails: Sequence[str], address: str
    ) -> Awaitable[str | None] | str | None:
        """Why this account may not be made, a sentence for the person; None: it may. `address`:
        where the request comes from, empty where a provider vouches for the person. Administrators
        are not asked about."""

    @hookspec
    def check_sign_in(
        self, user_id: str, way: str, address: str
    ) -> Awaitable[str | None] | str | None:
        """Why this person may not sign in now, a sentence for them; None: they may. `way`:
        `password`, `token` (that of another client, or of an identity provider), `jwt`, `browser`
        or `application_password` (made for one program)."""

    @hookspec
    def check_captcha(self, solution: str, address: str) -> Awaitable[bool | None] | bool | None:
        """Whether somebody who registers has solved the riddle; None: not known here, and
        `recaptcha_siteverify_api` is asked. `address`: where they are."""

    @hookspec
    def send_text_message(self, number: str, text: str) -> Awaitable[bool | None] | bool | None:
        """Send a text to a telephone, and say True when it is on its way; None: not by this
        plug-in, and `sms_gateway` of the configuration is asked. `number`: digits, beginning with
        the code of the country."""

    @hookspec
    def check_file(self, file: FileToCheck) -> Awaitable[str | None] | str | None:
        """What is harmful in a file, in a word or two for administrators; None: nothing. A content
        is asked about once, and again when `get_file_rules` says something else."""

    @hookspec
    def get_file_rules(self) -> str | None:
        """Which rules for files there are at this moment: a text that changes with them, such as
        the version of a list."""


class Plugins:
    """All plug-ins, in the order of the configuration."""

    def __init__(self, plugins: Sequence[object] = ()) -> None:
        """Raises `ValueError` for a plug-in whose methods fit no hook."""
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(Hooks)
        try:
            for plugin in reversed(plugins):  # the last that is registered is called first
                self._manager.register(plugin)
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise ValueError(f"a plug-in does not fit: {error}") from error
        self.check_passwords = bool(self._manager.hook.check_password.get_hookimpls())
        """Whether any of them knows passwords."""
        self.check_captchas = bool(self._manager.hook.check_captcha.get_hookimpls())
        """Whether any of them knows riddles."""
        self.send_text_messages = bool(self._manager.hook.send_text_message.get_hookimpls())
        """Whether any of them sends text messages."""
        self.check_files = bool(self._manager.hook.check_file.get_hookimpls())
        """Whether any of them looks into files."""

    async def check_password(self, name: str, password: str) -> Person | None:
        """The first answer."""
        return await _first(self._manager.hook.check_password(name=name, password=password))

    async def check_registration(
        self, username: str | None, emails: Sequence[str], address: str
    ) -> str | None:
        """The first objection."""
        return await _first(
            self._manager.hook.check_registration(
                username=username, emails=tuple(emails), address=address
            )
        )

    async def check_sign_in(self, user_id: str, way: str, address: str) -> str | None:
        """The first objection."""
        return await _first(
            self._manager.hook.check_sign_in(user_id=user_id, way=way, address=address)
        )

    async def check_captcha(self, solution: str, address: str) -> bool | None:
        """The first answer."""
        return await _first(self._manager.hook.check_captcha(solution=solution, address=address))

    async def send_text_message(self, number: str, text: str) -> bool | None:
        """The first answer."""
        return await _first(self._manager.hook.send_text_message(number=number, text=text))

    async def check_file(self, file: FileToCheck) -> str | None:
        """The first objection."""
        return await _first(self._manager.hook.check_file(file=file))

    def file_rules(self) -> str:
        """What all of them say of their rules."""
        return " ".join(self._manager.hook.get_file_rules())


async def _first(answers: Sequence[Awaitable[T | None] | T | None]) -> T | None:
    """The first that is not None. All of them are waited for, so that each plug-in has heard of
    everything."""
    found: T | None = None
    for answer in answers:
        value = await cast(Awaitable[T | None], answer) if isawaitable(answer) else answer
        found = value if found is None else found
    return found


def load_plugin(path: str, config: Mapping[str, Any]) -> object:
    """The plug-in at `package.module.Class`, made with its settings. Raises `ValueError`."""
    module, _, name = path.rpartition(".")
    try:
        made: object = getattr(import_module(module), name)(dict(config))
    except Exception as error:  # whatever the code of others raises stops the start with a sentence
        raise ValueError(
            f"the plug-in {path} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return made
