"""The interface between the stream reader and the e-mails about missed messages (`digests.py`)."""

from typing import Protocol

from storage.push.pushers import PusherRow


class EmailNotifier(Protocol):
    """Sends e-mails about missed messages."""

    async def record(self, pusher: PusherRow, room_nid: int) -> None:
        """Record that an event in the room concerns this pusher."""
        ...

    def record_read(self, user_id: str, room_nid: int) -> None:
        """Record that the user has read something in a room."""
        ...

    async def flush(self) -> None:
        """Store what was recorded; it is durable when this returns."""
        ...

    def start(self) -> None:
        """Start to send e-mails."""
        ...

    def stop(self) -> None:
        """Stop sending e-mails."""
        ...


class NoEmailNotifier:
    """Sends no e-mails, on a server without them. Existing e-mail pushers wait."""

    async def record(self, pusher: PusherRow, room_nid: int) -> None:
        """Do nothing: no e-mail is sent."""

    def record_read(self, user_id: str, room_nid: int) -> None:
        """Do nothing: no e-mail depends on it."""

    async def flush(self) -> None:
        """Do nothing: nothing was recorded."""

    def start(self) -> None:
        """Do nothing: there is nothing to start."""

    def stop(self) -> None:
        """Do nothing: there is nothing to stop."""
