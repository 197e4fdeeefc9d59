-- The join since which only a part of the room's state is known; NULL: all of it is
ALTER TABLE rooms ADD COLUMN partial_join BIGINT;

-- Rooms that were entered with a part of their state
CREATE TABLE partial_rooms (
    room_nid BIGINT NOT NULL PRIMARY KEY,
    -- the join, and its position
    join_nid BIGINT NOT NULL,
    position BIGINT NOT NULL,
    -- the server that let us in
    resident TEXT NOT NULL,
    -- root of what has been gathered of the state before the join
    gathered BYTES,
    -- from which position on all of the state is known; NULL: it is not yet
    completed BIGINT,
    -- until when, in milliseconds, a node is at work on it
    leased_until BIGINT NOT NULL DEFAULT 0
);

-- The servers that were in such a room when we came, until its members are known
CREATE TABLE partial_servers (
    room_nid BIGINT NOT NULL,
    server TEXT NOT NULL,
    PRIMARY KEY (room_nid, server)
) CLUSTERED;

-- Events that were placed upon a part of the state, until they are looked at again
CREATE TABLE partial_events (
    room_nid BIGINT NOT NULL,
    -- rises in the order in which they were placed
    place BIGINT NOT NULL,
    event_nid BIGINT NOT NULL,
    -- 1: no news when it came
    is_past INTEGER NOT NULL,
    -- 1: something that it follows was missing, and what the state before it was is assumed
    has_gap INTEGER NOT NULL,
    -- what it is with all of the state, once that was found
    flags INTEGER,
    state_root BYTES,
    replaces BIGINT,
    current_root BYTES,
    PRIMARY KEY (room_nid, place)
) CLUSTERED;
CREATE INDEX partial_events_by_event ON partial_events (event_nid);
