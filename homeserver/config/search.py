"""Options about message search and the user directory."""

from dataclasses import dataclass
from typing import Literal

from homeserver.config.option import option, section

Language = Literal["uz", "kaa", "ru", "en"]
"""The languages whose spelling variants the search knows: Uzbek, Karakalpak, Russian, English."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserDirectoryOptions:
    """The user directory."""

    enabled: bool = option(True, "Lets people search for people. Without it, nobody is found.")
    search_all_users: bool = option(
        False, "Finds every account of this server, also for people who share no room with them."
    )
    prefer_local_users: bool = option(False, "Lists people of this server first.")
    exclude_remote_users: bool = option(False, "Finds only people of this server.")
    show_locked_users: bool = option(False, "Finds people whose account is locked.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """Search."""

    enable_search: bool = option(
        True, "Indexes messages for search. Without it, the index is emptied."
    )
    search_languages: tuple[Language, ...] = option(
        ("uz", "kaa", "ru", "en"),
        "The languages whose spellings of a word are treated alike: the two scripts of Uzbek and "
        "Karakalpak, ё and е in Russian. A change indexes all messages again.",
        example="[uz, ru]",
    )
    user_directory: UserDirectoryOptions = section(UserDirectoryOptions, "The directory of people.")
