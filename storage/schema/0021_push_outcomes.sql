-- Push rules at work: what events are to people, kept without a row for each member

-- The thread that an event stands in, by its root; NULL for the main timeline
ALTER TABLE events ADD COLUMN thread_root TEXT;
UPDATE events SET thread_root = (
    SELECT target FROM relations WHERE relations.event_nid = events.event_nid AND rel_type = 'm.thread'
) WHERE (flags & 128) <> 0;

-- The bits of `flags` that say to whom an event is something: 8 whoever has default rules is notified of it, 32 and it is
-- highlighted for them, 64 it is something else to some of our users (see push_outcomes)
CREATE INDEX events_counted ON events (room_nid, position, sender, flags, thread_root, redacted_by) WHERE (flags & 72) <> 0;
CREATE INDEX events_calling ON events (room_nid, position) WHERE (flags & 32) <> 0;

-- What an event is to those of our users to whom it is something else than its flags and their attention say
CREATE TABLE push_outcomes (
    user_id TEXT NOT NULL,
    room_nid BIGINT NOT NULL,
    position BIGINT NOT NULL,
    event_nid BIGINT NOT NULL,
    -- 0 nothing, 1 notifies, 3 notifies and is highlighted
    outcome INTEGER NOT NULL,
    PRIMARY KEY (user_id, room_nid, position)
) CLUSTERED;
INSERT INTO push_outcomes (user_id, room_nid, position, event_nid, outcome)
    SELECT h.user_id, h.room_nid, h.position, e.event_nid, 3 FROM highlights AS h
    JOIN events AS e ON e.room_nid = h.room_nid AND e.position = h.position;
DROP TABLE highlights;

-- What ordinary messages are to users whose own rules say so, from a position on; the latest before an event holds
CREATE TABLE push_attention (
    user_id TEXT NOT NULL,
    -- in lower case; '' for all rooms that have no row of their own
    room_id TEXT NOT NULL,
    position BIGINT NOT NULL,
    -- 0 what the flags say, 1 only what is highlighted for everybody, 2 nothing; -1 the same as in other rooms
    attention INTEGER NOT NULL,
    PRIMARY KEY (user_id, room_id, position)
) CLUSTERED;
