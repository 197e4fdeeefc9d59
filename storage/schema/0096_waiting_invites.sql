-- Invites to rooms that this server is not in, beside one of another server that the user sees: nobody here can tell which is true.
-- When that one is ended by others, the first of these takes its place.
CREATE TABLE waiting_invites (
    room_nid BIGINT NOT NULL,
    user_id TEXT NOT NULL,
    server TEXT NOT NULL,
    -- in the order of their coming
    number BIGINT NOT NULL,
    event_id TEXT NOT NULL,
    version TEXT NOT NULL,
    pdu BYTES NOT NULL,
    stripped_state BYTES NOT NULL,
    -- what the event says, as JSON
    membership BYTES NOT NULL,
    PRIMARY KEY (room_nid, user_id, server)
) CLUSTERED;
