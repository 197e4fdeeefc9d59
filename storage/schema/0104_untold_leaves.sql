-- Servers that have yet to hear that a user of ours declined an invite or took a knock back, in a room that this server is not in.
CREATE TABLE untold_leaves (
    room_nid BIGINT NOT NULL,
    user_id TEXT NOT NULL,
    server TEXT NOT NULL,
    -- of the leave that is kept in outside_memberships: when another membership is kept there, nothing is to be told any more
    event_id TEXT NOT NULL,
    -- since when it is to be told, and when that is tried next (ms since 1970)
    since_ts BIGINT NOT NULL,
    due_ts BIGINT NOT NULL,
    -- how often it was tried
    attempts INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (room_nid, user_id, server)
) CLUSTERED;
CREATE INDEX untold_leaves_by_server ON untold_leaves (server, due_ts);
CREATE INDEX untold_leaves_due ON untold_leaves (due_ts);
