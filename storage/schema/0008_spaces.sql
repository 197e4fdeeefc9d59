-- Spaces, what may be known of rooms from outside, looking events up by time, and reports.

-- JSON list: the rooms whose members a restricted join rule lets in
ALTER TABLE room_summaries ADD COLUMN allowed_rooms TEXT;

-- The rooms that a space names as its children: its m.space.child entries that have servers to join by
CREATE TABLE space_children (
    -- the space
    room_nid BIGINT NOT NULL,
    -- the child, which need not be known
    child_id TEXT NOT NULL,
    event_nid BIGINT NOT NULL,
    origin_server_ts BIGINT NOT NULL,
    -- NULL where there is none, or none that counts
    child_order TEXT,
    suggested INTEGER NOT NULL,
    PRIMARY KEY (room_nid, child_id)
) CLUSTERED;
CREATE INDEX space_children_by_child ON space_children (child_id);

-- What happened in a room at some time, by the clocks of who sent it
CREATE INDEX events_by_time ON events (room_nid, origin_server_ts, event_nid);

-- What users reported to the administrators of this server
CREATE TABLE reports (
    report_nid ROW_NUMBER NOT NULL PRIMARY KEY,
    received_ts BIGINT NOT NULL,
    -- event, room or user
    kind TEXT NOT NULL,
    -- who reported
    user_id TEXT NOT NULL,
    -- of an event or room
    room_id TEXT,
    event_id TEXT,
    -- the user who was reported, or who sent the event
    target_user_id TEXT,
    -- NULL where none was given
    reason TEXT
);
CREATE INDEX reports_by_kind ON reports (kind, report_nid);

-- New accounts that have not come into all of the rooms yet that every account joins
CREATE TABLE arriving_accounts (
    user_id TEXT NOT NULL PRIMARY KEY
);

-- Redactions that are to take what relates to their target along, also what comes later
CREATE TABLE related_redactions (
    -- the event that was redacted
    target TEXT NOT NULL,
    -- who redacted it
    sender TEXT NOT NULL,
    -- type of the relations, * for all
    rel_type TEXT NOT NULL,
    room_nid BIGINT NOT NULL,
    reason TEXT,
    -- 1 once all that was there has been redacted
    finished INTEGER NOT NULL,
    PRIMARY KEY (target, sender, rel_type)
);
CREATE INDEX related_redactions_unfinished ON related_redactions (target) WHERE finished = 0;
