"""Requests about thread subscriptions."""

from urllib.parse import quote

UNSTABLE = "/_matrix/client/unstable/io.element.msc4306"


def subscription_path(room_id: str, root: str, prefix: str = UNSTABLE) -> str:
    """Return the path of the subscription to a thread."""
    return f"{prefix}/rooms/{quote(room_id)}/thread/{quote(root)}/subscription"
