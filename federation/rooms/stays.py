"""How long a user was in a room that they are not in any more: what came later is not for them."""

from federation.rooms.current_states import CurrentStates
from federation.rooms.visible import Visibility
from storage.memberships import MembershipRow


class Stays:
    """Finds the ends of stays. For the reactor thread."""

    def __init__(self, visibility: Visibility, states: CurrentStates) -> None:
        self._visibility = visibility
        self._states = states

    async def find_end(self, own: MembershipRow) -> int | None:
        """The position at which the last stay of a user ended who is not in the room; None for who was never in it.

        Nothing that came later is for them, but their own membership and what the history visibility says of events. Where the
        resolution of forks put a membership into force whose event had come before, the position of the row is that of the
        resolution. It ended a stay if the user was in the room until then; else (a ban was lifted by it) they had left before.
        """
        departure, joined = await self._visibility.find_last_stay(own)
        if joined is None:
            return None
        left = (departure or joined).position or 0  # without a departure it was a resolution that took them out
        if departure is not None and (departure.nid != own.event_nid or left == own.position):
            return left
        return own.position if await self._states.was_joined_at(own, own.position - 1) else left
