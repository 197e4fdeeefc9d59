-- In the place of `is_unjudged`: for the word of which policy server an event waits, or one of the room that came before it
ALTER TABLE inbox ADD COLUMN judge TEXT;
UPDATE inbox SET judge = '' WHERE is_unjudged = 1;
DROP INDEX inbox_unjudged;
ALTER TABLE inbox DROP COLUMN is_unjudged;
CREATE INDEX inbox_unjudged ON inbox (origin, room_nid, judge) WHERE judge IS NOT NULL;
