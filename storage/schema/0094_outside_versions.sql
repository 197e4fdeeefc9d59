-- The version of the room as the server says that told of the membership: another server may say another.
ALTER TABLE outside_memberships ADD COLUMN version TEXT NOT NULL DEFAULT '';
UPDATE outside_memberships SET version = (SELECT r.version FROM rooms AS r WHERE r.room_nid = outside_memberships.room_nid);
