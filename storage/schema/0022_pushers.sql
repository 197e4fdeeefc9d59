-- Notifications: whom to push to, and how far that is.

-- Each kind of work that one node does at a time has its row
ALTER TABLE sender_lease RENAME TO leases;

-- Where a user's notifications go
CREATE TABLE pushers (
    pusher_nid ROW_NUMBER NOT NULL PRIMARY KEY,
    -- nothing up to here is pushed any more: it was, or was given up, or is older than the pusher
    position BIGINT NOT NULL,
    -- when a client last set it
    set_ts BIGINT NOT NULL,
    -- NULL while all is well
    failing_since_ts BIGINT,
    tried_ts BIGINT NOT NULL,
    -- pause after the last try, if that failed
    pause_ms BIGINT NOT NULL,
    -- the last push that was taken
    success_ts BIGINT,
    -- e-mail: when to look whether a letter is due; NULL where nothing waits
    due_ts BIGINT,
    enabled INTEGER NOT NULL,
    -- the client counts what is unread itself
    no_counts INTEGER NOT NULL,
    user_id TEXT NOT NULL,
    app_id TEXT NOT NULL,
    pushkey TEXT NOT NULL,
    -- http, email
    kind TEXT NOT NULL,
    app_display_name TEXT NOT NULL,
    device_display_name TEXT NOT NULL,
    profile_tag TEXT,
    lang TEXT NOT NULL,
    -- the device that set it, and with which it ends; NULL for e-mail
    device_id TEXT,
    -- scheme, host and port of its gateway; '' for e-mail
    gateway TEXT NOT NULL,
    -- what was wrong with the last push, if it failed
    error TEXT,
    -- JSON object
    data BYTES NOT NULL
) ROOMY;
CREATE UNIQUE INDEX pushers_by_key ON pushers (app_id, pushkey, user_id);
CREATE INDEX pushers_by_user ON pushers (user_id);
CREATE INDEX pushers_by_due ON pushers (due_ts) WHERE due_ts IS NOT NULL;

-- When a user's pushers last changed
CREATE TABLE pusher_changes (
    user_id TEXT NOT NULL PRIMARY KEY,
    position BIGINT NOT NULL
);
CREATE INDEX pusher_changes_by_position ON pusher_changes (position);

-- Letters about a room: when the last one went out, and how long the next one has to wait after it
CREATE TABLE email_pauses (
    pusher_nid BIGINT NOT NULL,
    room_nid BIGINT NOT NULL,
    sent_ts BIGINT NOT NULL,
    pause_ms BIGINT NOT NULL,
    PRIMARY KEY (pusher_nid, room_nid)
) CLUSTERED;

-- The stream as it is read for pushing: events that are something to somebody (see push_outcomes), receipts that others do not see,
-- invites of our users
CREATE INDEX events_to_push ON events (position) WHERE (flags & 72) <> 0;
CREATE INDEX private_receipts ON receipts (position) WHERE receipt_type = 'm.read.private';
CREATE INDEX memberships_invited ON memberships (position) WHERE membership = 'invite' AND is_local = 1;
