"""Options for pushes to gateways: whether they are sent, their content, the badge count, a random
delay, plain HTTP."""

from dataclasses import dataclass

from homeserver.config.option import Duration, option, section


@dataclass(frozen=True, slots=True, kw_only=True)
class PushOptions:
    """Push notifications through push gateways."""

    enabled: bool = option(
        True, "Sends pushes. `false`: clients can set pushers, but no pushes are sent."
    )
    include_content: bool = option(
        True,
        "Includes message content in notifications to gateways, and in e-mails about missed "
        "messages. Apps that ask for `event_id_only` never get content.",
    )
    group_unread_count_by_room: bool = option(
        True,
        "The number on an app's icon counts rooms with unread messages. `false`: it counts "
        "messages.",
    )
    jitter_delay: Duration = option(
        Duration(0),
        "Delays each push by a random time up to this one. Then an observer of the network "
        "learns less about who communicates with whom.",
        maximum=600_000,
        example="10s",
    )
    allow_plain_http: bool = option(
        False, "Allows push gateways with `http://`, for use inside your own network."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationOptions:
    """Push notifications."""

    push: PushOptions = section(PushOptions, "Push notifications through push gateways.")
