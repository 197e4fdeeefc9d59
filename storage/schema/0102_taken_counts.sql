-- What another node took away shows in the numbers of unread messages, and so does what was purged while a client was away.

-- position of the last of the messages that may have been counted as unread; 0: none
ALTER TABLE purged_messages ADD COLUMN counted_upto BIGINT NOT NULL DEFAULT 0;
CREATE INDEX events_that_redact ON events (position) WHERE type = 'm.room.redaction';
CREATE INDEX memberships_departed ON memberships (position) WHERE membership IN ('leave', 'ban') AND is_local = 1;
