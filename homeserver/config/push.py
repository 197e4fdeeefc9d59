"""Options about notifications."""

from dataclasses import dataclass

from homeserver.config.option import Duration, option, section


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """Telling people's devices of what happens, through push gateways."""

    enabled: bool = option(
        True, "Whether anything is pushed; without, pushers can be set and wait."
    )
    include_content: bool = option(
        True,
        "Whether gateways, and letters about what people missed, are told what people write. Apps that ask for it "
        "(`event_id_only`) are told no content in any case.",
    )
    group_unread_count_by_room: bool = option(
        True,
        "Whether the number on an app's icon is that of rooms with something unread; else that of messages.",
    )
    jitter_delay: Duration = option(
        Duration(0),
        "Up to so long a push waits, by chance: who sees messages and pushes go by learns less of who talks with whom.",
        maximum=600_000,
        example="10s",
    )
    allow_plain_http: bool = option(
        False, "Whether gateways may be addressed with http://, as inside a network of one's own."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Notifications:
    """Notifications."""

    push: Push = section(Push, "Telling people's devices of what happens, through push gateways.")
