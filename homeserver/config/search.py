"""Options about message search and the user directory."""

from dataclasses import dataclass
from typing import Literal

from homeserver.config.option import option, section

Language = Literal["uz", "kaa", "ru", "en"]
"""The languages whose spelling variants the search knows: Uzbek, Karakalpak, Russian, English."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserDirectoryOptions:
    """The user directory."""

    enabled: bool = option(True, "Lets people search for users. `false`: a search finds nobody.")
    search_all_users: bool = option(
        False,
        "Finds every account of this server, even those that share no room with the searcher.",
    )
    prefer_local_users: bool = option(False, "Lists people of this server first.")
    exclude_remote_users: bool = option(False, "Finds only people of this server.")
    show_locked_users: bool = option(False, "Finds people whose account is locked.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """Search."""

    enable_search: bool = option(
        True, "Indexes messages for search. `false`: search is off, and the index is deleted."
    )
    search_languages: tuple[Language, ...] = option(
        ("uz", "kaa", "ru", "en"),
        "The languages for which search treats different spellings of a word as equal: the two "
        "scripts of Uzbek and Karakalpak, ё and е in Russian. After a change, all messages are "
        "indexed again.",
        example="[uz, ru]",
    )
    user_directory: UserDirectoryOptions = section(UserDirectoryOptions, "Search for users.")
