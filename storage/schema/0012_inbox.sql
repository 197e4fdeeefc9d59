-- Events that other servers sent, and that wait for others that this server lacks. They have been acknowledged.
CREATE TABLE inbox (
    inbox_nid ROW_NUMBER NOT NULL PRIMARY KEY,
    room_nid BIGINT NOT NULL,
    received_ts BIGINT NOT NULL,
    -- how often it was tried in vain to get what it waits for
    attempts INTEGER NOT NULL DEFAULT 0,
    event_id TEXT NOT NULL,
    -- the server that sent it
    origin TEXT NOT NULL,
    pdu BYTES NOT NULL
);
CREATE UNIQUE INDEX inbox_by_event ON inbox (event_id);
CREATE INDEX inbox_by_room ON inbox (room_nid, attempts, inbox_nid);
CREATE INDEX inbox_by_origin ON inbox (origin);

-- How deep the missing event stands: one less than the deepest event that is known to follow it
ALTER TABLE backward_extremities ADD COLUMN depth BIGINT NOT NULL DEFAULT 0;
