"""Who writes to people by e-mail of what they miss, as the reader of the stream needs to know it
(`digests.py` does it)."""

from typing import Protocol

from storage.push.pushers import PusherRow


class Letters(Protocol):
    """Who writes to people by e-mail of what they miss."""

    async def note(self, pusher: PusherRow, room_nid: int) -> None:
        """There is something that this pusher is to tell."""
        ...

    def note_reading(self, user_id: str, room_nid: int) -> None:
        """The user has read something in a room."""
        ...

    async def flush(self) -> None:
        """What was noted is durable when this returns."""
        ...

    def start(self) -> None:
        """Write from now on."""
        ...

    def stop(self) -> None:
        """Write no more."""
        ...


class NoLetters:
    """Of a server that writes none: pushers by e-mail, from when it did, wait."""

    async def note(self, pusher: PusherRow, room_nid: int) -> None:
        """Nobody is told."""

    def note_reading(self, user_id: str, room_nid: int) -> None:
        """Nobody waits for that."""

    async def flush(self) -> None:
        """Nothing was noted."""

    def start(self) -> None:
        """Nothing is written."""

    def stop(self) -> None:
        """Nothing was written."""
