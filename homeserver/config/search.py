"""Options about finding: messages by what they say, people by their names."""

from dataclasses import dataclass
from typing import Literal

from homeserver.config.option import option, section

Language = Literal["uz", "kaa", "ru", "en"]
"""Languages whose ways of writing the search knows: Uzbek, Karakalpak, Russian, English."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserDirectory:
    """The directory of people."""

    enabled: bool = option(True, "Whether people can search for people; without, nobody is found.")
    search_all_users: bool = option(
        False,
        "Whether everyone with an account here is found, also by people who share no room with them.",
    )
    prefer_local_users: bool = option(False, "Whether people of this server come first.")
    exclude_remote_users: bool = option(False, "Whether only people of this server are found.")
    show_locked_users: bool = option(False, "Whether people whose account is locked are found.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Finding messages and people."""

    enable_search: bool = option(
        True,
        "Whether messages are indexed and can be searched for; without, what was indexed is forgotten.",
    )
    search_languages: tuple[Language, ...] = option(
        ("uz", "kaa", "ru", "en"),
        "The languages whose spellings of a word count as one: the two scripts of Uzbek and Karakalpak, ё and е in "
        "Russian. A change has all messages indexed anew.",
        example="[uz, ru]",
    )
    user_directory: UserDirectory = section(UserDirectory, "The directory of people.")
