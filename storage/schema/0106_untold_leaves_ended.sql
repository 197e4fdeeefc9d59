-- The invite that was declined, or the knock that was taken back, as that server told it: if this server enters the room before it could
-- tell of the leave, that is what still stands there. Empty: not known.
ALTER TABLE untold_leaves ADD COLUMN ended TEXT NOT NULL DEFAULT '';
