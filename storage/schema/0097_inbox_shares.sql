-- Whether the server that sent it was not in the room then: such events have a small share of the places
ALTER TABLE inbox ADD COLUMN is_outside INTEGER NOT NULL DEFAULT 0;
-- Bytes of `pdu`
ALTER TABLE inbox ADD COLUMN size INTEGER NOT NULL DEFAULT 0;
UPDATE inbox SET size = length(pdu);
DROP INDEX inbox_by_origin;
-- All that the bounds look at
CREATE INDEX inbox_shares ON inbox (origin, is_outside, size);
