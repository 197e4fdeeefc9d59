-- Receipts of other servers' users (m.read) that came before the events at which they stand: told to nobody until these come
CREATE TABLE early_receipts (
    room_nid BIGINT NOT NULL,
    -- rises with each that comes
    number BIGINT NOT NULL,
    ts BIGINT NOT NULL,
    user_id TEXT NOT NULL,
    thread_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    -- who told of it
    server TEXT NOT NULL,
    PRIMARY KEY (room_nid, user_id, thread_id)
) CLUSTERED;
CREATE INDEX early_receipts_by_event ON early_receipts (event_id);
CREATE INDEX early_receipts_by_server ON early_receipts (server, number);
CREATE UNIQUE INDEX early_receipts_by_number ON early_receipts (number);
-- Those that are in the table of receipts were looked at by nobody when their events came
DELETE FROM receipts WHERE event_position IS NULL AND receipt_type = 'm.read'
    AND NOT EXISTS (SELECT 1 FROM events WHERE events.event_id = receipts.event_id);
