"""Takes the lease away from a part of a server, as a kill or another node does.

The parts are the reader of the push stream and the federation sender.
"""

from collections.abc import Callable

from federation.sender.sender import FederationSender
from homeserver.services.pushers.stream_reader import PushStreamReader
from storage.cluster.lease_loop import LeaseLoop

LeasedPart = PushStreamReader | FederationSender


def _loop_of(part: LeasedPart) -> LeaseLoop:
    return part._lease  # private: only the part itself starts and stops the rounds


def holds_lease(part: LeasedPart) -> bool:
    return _loop_of(part).is_held


def stop_renewing(part: LeasedPart) -> None:
    """Stop the rounds without releasing the lease, as a kill does."""
    rounds = _loop_of(part)._round  # private: `stop` would release the lease
    if rounds.running:
        rounds.stop()


def kill_part(part: LeasedPart) -> None:
    """Stop the rounds and the work without releasing the lease."""
    stop_renewing(part)
    _loop_of(part).is_held = False


async def renew_lease(part: LeasedPart) -> None:
    """Renew the lease now, and store the position with it."""
    await _loop_of(part)._renew()  # private: a round would also let time pass


def set_node(part: LeasedPart, get_node: Callable[[], int]) -> None:
    """Set the function that returns the node number of the process."""
    lease = _loop_of(part)._lease  # private: in memory, no process has a number of its own
    lease._get_node = get_node  # private: in memory, no process has a number of its own


def allow_other_nodes(part: LeasedPart) -> None:
    """Let other nodes take the lease though the database is SQLite."""
    _loop_of(part)._lease.is_single_node = False  # private: the engine decides it
