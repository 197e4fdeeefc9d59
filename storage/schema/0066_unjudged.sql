-- 1: an event that waits for the word of its room's policy server, or came into the room after one that does
ALTER TABLE inbox ADD COLUMN is_unjudged INTEGER NOT NULL DEFAULT 0;
CREATE INDEX inbox_unjudged ON inbox (origin, room_nid) WHERE is_unjudged = 1;
