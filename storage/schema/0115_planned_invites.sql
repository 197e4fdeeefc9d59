-- Invites of users of other servers into a room that was just made, which are still to be sent: the room was acknowledged with them
CREATE TABLE planned_invites (
    room_nid BIGINT NOT NULL,
    user_id TEXT NOT NULL,
    -- the order in a room
    turn INTEGER NOT NULL,
    sender TEXT NOT NULL,
    -- of the event, JSON
    content BYTES NOT NULL,
    -- at the first of a room: until then somebody is at inviting into it (ms since 1970); the others' turn has not come
    due_ts BIGINT NOT NULL,
    PRIMARY KEY (room_nid, user_id)
);
CREATE INDEX planned_invites_due ON planned_invites (due_ts);
