-- Events that are told to everyone in their room for a while, whatever else happens there (MSC4354)

CREATE TABLE sticky_events (
    event_nid BIGINT NOT NULL PRIMARY KEY,
    room_nid BIGINT NOT NULL,
    sender TEXT NOT NULL,
    -- when it was known here: its arrival, or for one from the past a position of its own
    position BIGINT NOT NULL,
    -- milliseconds since 1970
    expires_ts BIGINT NOT NULL,
    -- 1 while it is soft-failed: it is told once its sender may send it
    waits INTEGER NOT NULL
);
CREATE INDEX sticky_events_waiting ON sticky_events (room_nid, sender) WHERE waits = 1;
CREATE INDEX sticky_events_by_end ON sticky_events (expires_ts);

-- for how many milliseconds a delayed event is sticky once it is sent
ALTER TABLE delayed_events ADD COLUMN sticky_ms BIGINT;
