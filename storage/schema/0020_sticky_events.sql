-- Events that are told to everyone in their room for a while, whatever else happens there (MSC4354)

CREATE TABLE sticky_events (
    event_nid BIGINT NOT NULL PRIMARY KEY,
    room_nid BIGINT NOT NULL,
    sender TEXT NOT NULL,
    -- when it was known here: its arrival, or for one from the past a position of its own
    position BIGINT NOT NULL,
    -- milliseconds since 1970
    expires_ts BIGINT NOT NULL
);
CREATE INDEX sticky_events_by_end ON sticky_events (expires_ts);

-- for how many milliseconds a delayed event is sticky once it is sent
ALTER TABLE delayed_events ADD COLUMN sticky_ms BIGINT;
