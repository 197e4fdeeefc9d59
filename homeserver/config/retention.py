"""Options about how long messages are kept. See docs/operators/retention.md."""

from dataclasses import dataclass

from homeserver.config.option import Duration, option, required, section


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicy:
    """What holds in rooms that say nothing."""

    min_lifetime: Duration | None = option(
        None,
        "How long messages are meant to be kept at least: clients are told, this server deletes none because of it.",
        minimum=0,
    )
    max_lifetime: Duration | None = option(
        None, "How long messages are kept; without it, for ever.", minimum=0, example="1y"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgeJob:
    """How often the messages of some rooms are looked through."""

    shortest_max_lifetime: Duration | None = option(
        None, "Rooms that keep their messages longer than this; without it, any.", minimum=0
    )
    longest_max_lifetime: Duration | None = option(
        None, "Rooms that keep their messages so long at most; without it, any.", minimum=0
    )
    interval: Duration = required("The time between two looks.", minimum=1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long messages are kept."""

    enabled: bool = option(
        False,
        "Whether messages go by age, as `default_policy` and the rooms themselves (`m.room.retention`) say. What is older is shown to "
        "nobody, and deleted for good soon after. Whoever may change a room's settings may then have its messages deleted here.",
    )
    default_policy: RetentionPolicy = section(RetentionPolicy, "For rooms that say nothing.")
    allowed_lifetime_min: Duration | None = option(
        None,
        "Rooms that want their messages to go sooner keep them so long.",
        minimum=0,
        example="1d",
    )
    allowed_lifetime_max: Duration | None = option(
        None,
        "Rooms that want to keep their messages longer keep them so long.",
        minimum=0,
        example="5y",
    )
    purge_jobs: tuple[PurgeJob, ...] | None = option(
        (),
        "How often what is not shown any more is deleted: for each room by the first of these that is for a lifetime such as its own; "
        "without one, each hour. Until then it still counts as unread: with an interval of a day, badges may be a day late.",
        example="[{longest_max_lifetime: 3d, interval: 10m}, {shortest_max_lifetime: 3d, interval: 1d}]",
    )


def complaints_of(retention: Retention) -> list[tuple[tuple[str | int, ...], str]]:
    """What is wrong with options that are right each by itself: where, and what."""
    found: list[tuple[tuple[str | int, ...], str]] = []
    if _is_above(retention.allowed_lifetime_min, retention.allowed_lifetime_max):
        found.append((("allowed_lifetime_min",), "may not be more than `allowed_lifetime_max`"))
    policy = retention.default_policy
    if _is_above(policy.min_lifetime, policy.max_lifetime):
        found.append((("default_policy", "min_lifetime"), "may not be more than `max_lifetime`"))
    for at, job in enumerate(retention.purge_jobs or ()):
        if _is_above(job.shortest_max_lifetime, job.longest_max_lifetime):
            found.append(
                (
                    ("purge_jobs", at, "shortest_max_lifetime"),
                    "may not be more than `longest_max_lifetime`",
                )
            )
    return found


def _is_above(least: int | None, longest: int | None) -> bool:
    return least is not None and longest is not None and least > longest
