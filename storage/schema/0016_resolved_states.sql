-- Root of the room's current state once this event had arrived, where that is another than the state after it: while the
-- room's history is forked, and the resolution of the forks is more than what this event set. NULL: the same.
ALTER TABLE events ADD COLUMN current_root BYTES;
