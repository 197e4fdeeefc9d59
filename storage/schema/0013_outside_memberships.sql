-- Memberships of our users in rooms that this server is not in: invites and knocks, and the leaving after these.
-- Their events are no part of a room here: what they rest upon is not known. The row in memberships has event_nid 0.

CREATE TABLE outside_memberships (
    room_nid BIGINT NOT NULL,
    user_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    -- a server that knows the room
    server TEXT NOT NULL,
    pdu BYTES NOT NULL,
    -- what that server says of the room: a JSON array of stripped state events
    stripped_state BYTES NOT NULL,
    PRIMARY KEY (room_nid, user_id)
) CLUSTERED;
