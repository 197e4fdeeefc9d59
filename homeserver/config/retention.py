"""Options about message retention. See docs/operators/retention.md."""

from dataclasses import dataclass

from homeserver.config.option import Duration, option, required, section


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicyOptions:
    """The rule for rooms that set none."""

    min_lifetime: Duration | None = option(
        None,
        "The minimum time for which messages should be kept. It is only sent to clients and has "
        "no effect on this server.",
        minimum=0,
    )
    max_lifetime: Duration | None = option(
        None, "The time after which messages are deleted. `null`: never.", minimum=0, example="1y"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgeJobOptions:
    """A schedule for deleting messages of some rooms."""

    shortest_max_lifetime: Duration | None = option(
        None, "Only rooms with a longer lifetime than this. `null`: no minimum.", minimum=0
    )
    longest_max_lifetime: Duration | None = option(
        None, "Only rooms with at most this lifetime. `null`: no maximum.", minimum=0
    )
    interval: Duration = required("The time between two runs.", minimum=1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionOptions:
    """How long messages are kept."""

    enabled: bool = option(
        False,
        "Deletes messages by age, according to `default_policy` and the room's setting "
        "(`m.room.retention`). Older messages are hidden immediately, and permanently deleted "
        "soon after. People who can change a room's settings can then have its messages deleted "
        "on this server.",
    )
    default_policy: RetentionPolicyOptions = section(
        RetentionPolicyOptions, "The rule for rooms that set none."
    )
    allowed_lifetime_min: Duration | None = option(
        None,
        "The shortest lifetime. If a room sets a shorter one, this one applies.",
        minimum=0,
        example="1d",
    )
    allowed_lifetime_max: Duration | None = option(
        None,
        "The longest lifetime. If a room sets a longer one, this one applies.",
        minimum=0,
        example="5y",
    )
    purge_jobs: tuple[PurgeJobOptions, ...] | None = option(
        (),
        "How often hidden messages are deleted. The first entry that covers a room's lifetime "
        "applies. Without such an entry, they are deleted every hour. A hidden message counts as "
        "unread until it is deleted, so with an interval of a day, badges may be wrong for a "
        "day.",
        example=(
            "[{longest_max_lifetime: 3d, interval: 10m}, {shortest_max_lifetime: 3d, interval: 1d}]"
        ),
    )


def find_errors(retention: RetentionOptions) -> list[tuple[tuple[str | int, ...], str]]:
    """Check options that depend on each other. Return places and errors."""
    found: list[tuple[tuple[str | int, ...], str]] = []
    if _exceeds(retention.allowed_lifetime_min, retention.allowed_lifetime_max):
        found.append((("allowed_lifetime_min",), "must not be more than `allowed_lifetime_max`"))
    policy = retention.default_policy
    if _exceeds(policy.min_lifetime, policy.max_lifetime):
        found.append((("default_policy", "min_lifetime"), "must not be more than `max_lifetime`"))
    for at, job in enumerate(retention.purge_jobs or ()):
        if _exceeds(job.shortest_max_lifetime, job.longest_max_lifetime):
            found.append(
                (
                    ("purge_jobs", at, "shortest_max_lifetime"),
                    "must not be more than `longest_max_lifetime`",
                )
            )
    return found


def _exceeds(shortest: int | None, longest: int | None) -> bool:
    return shortest is not None and longest is not None and shortest > longest
