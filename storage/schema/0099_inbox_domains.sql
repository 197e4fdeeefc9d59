-- The registered domain of the server that sent it: whoever has one machine may be any number of servers. Before: not noted
ALTER TABLE inbox ADD COLUMN domain TEXT NOT NULL DEFAULT '';
-- All that the bounds look at
DROP INDEX inbox_shares;
CREATE INDEX inbox_shares ON inbox (origin, domain, is_outside, size);
-- All that says whose turn it is: the rows themselves are long
DROP INDEX inbox_by_room;
CREATE INDEX inbox_turns ON inbox (room_nid, is_outside, origin, attempts, inbox_nid);
