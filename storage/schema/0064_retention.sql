-- Messages that go: by age, as the rules of the server and of rooms say, and where an administrator purges a room's history.

-- The bit 2048 of `flags`: the content is gone for good, and the event is shown to nobody any more. Of each event one index of
-- each pair has a row. What is left to purge is found by `messages_by_time` alone: who is purged leaves it
DROP INDEX events_by_depth;
CREATE INDEX shown_by_depth ON events (room_nid, depth, event_nid) WHERE (flags & 2064) NOT IN (0, 2048, 2064);
CREATE INDEX unshown_by_depth ON events (room_nid, depth, event_nid) WHERE (flags & 2064) <> 16;
DROP INDEX events_by_time;
CREATE INDEX state_by_time ON events (room_nid, origin_server_ts, event_nid) WHERE state_key IS NOT NULL;
CREATE INDEX messages_by_time ON events (room_nid, origin_server_ts, event_nid)
    WHERE state_key IS NULL AND (flags & 2048) <> 2048;

-- What m.room.retention says, of rooms that have or had it
CREATE TABLE room_lifetimes (
    room_nid ROW_NUMBER NOT NULL PRIMARY KEY,
    -- milliseconds; 2^53 where the room wants no bound; NULL where it says nothing that counts
    max_lifetime BIGINT,
    -- when that was set; 0: it has not been read from the state yet
    position BIGINT NOT NULL
);
CREATE INDEX room_lifetimes_by_position ON room_lifetimes (position);
INSERT INTO room_lifetimes (room_nid, max_lifetime, position)
    SELECT room_nid, NULL, 0 FROM state_keys WHERE type = 'm.room.retention' AND state_key = '';

-- How many messages of a room lost their content on a day, and why; `position` tells other nodes of the latest
CREATE TABLE purged_messages (
    room_nid BIGINT NOT NULL,
    -- since 1970, in UTC
    day BIGINT NOT NULL,
    -- retention, purge, forgotten
    cause TEXT NOT NULL,
    messages BIGINT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (room_nid, day, cause)
) CLUSTERED;
CREATE INDEX purged_messages_by_day ON purged_messages (day, room_nid, cause);
CREATE INDEX purged_messages_by_position ON purged_messages (position);

-- Purges of a room's history that somebody asked for, or that a forgotten room has come to
CREATE TABLE history_purges (
    purge_id TEXT NOT NULL PRIMARY KEY,
    room_nid BIGINT NOT NULL,
    cause TEXT NOT NULL,
    -- messages sent before this go, NULL: whenever sent
    before_ts BIGINT,
    -- messages above this depth go, NULL: at whatever depth
    before_depth BIGINT,
    -- 1: those of this server's users too
    with_own INTEGER NOT NULL,
    -- the newest message when it began: it stays; NULL: none does
    kept_nid BIGINT,
    -- the last message that was looked at
    after_ts BIGINT NOT NULL,
    after_nid BIGINT NOT NULL,
    -- how many have lost their content
    messages BIGINT NOT NULL,
    -- who asked; NULL where it was a rule
    by_user_id TEXT,
    created_ts BIGINT NOT NULL,
    -- NULL while it goes on
    finished_ts BIGINT,
    -- why it could not go on
    error TEXT
);
CREATE UNIQUE INDEX history_purges_active ON history_purges (room_nid) WHERE finished_ts IS NULL;
CREATE INDEX history_purges_by_end ON history_purges (finished_ts) WHERE finished_ts IS NOT NULL;

-- Rooms that nobody of this server remembers: since when that is known, and when their messages were purged
CREATE TABLE forgotten_rooms (
    room_nid ROW_NUMBER NOT NULL PRIMARY KEY,
    since_ts BIGINT NOT NULL,
    purged_ts BIGINT
);
CREATE INDEX forgotten_rooms_waiting ON forgotten_rooms (since_ts) WHERE purged_ts IS NULL;

-- What the reference went by: unreferenced (a redaction, a changed setting), retention, purge, forgotten
ALTER TABLE media_rechecks ADD COLUMN cause TEXT NOT NULL DEFAULT 'unreferenced';
ALTER TABLE known_media ADD COLUMN cause TEXT NOT NULL DEFAULT 'unreferenced';

-- The copy of a message that was sent late
CREATE INDEX delayed_events_by_event ON delayed_events (event_id) WHERE event_id IS NOT NULL;
