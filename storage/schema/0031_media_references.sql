-- What refers to files, so that those go to which nobody refers any more; and what became of files.

-- Files, of this server and of others, that something refers to or has referred to
CREATE TABLE known_media (
    media_nid ROW_NUMBER NOT NULL PRIMARY KEY,
    -- the server whose file it is, and its id there
    origin TEXT NOT NULL,
    media_id TEXT NOT NULL,
    -- since when nobody refers to it any more; NULL while somebody does, and where nobody ever did
    unreferenced_ts BIGINT,
    -- 1: of this server's files, that its uploader has referred to it; without that it may be attached to their encrypted messages
    by_uploader INTEGER NOT NULL DEFAULT 0,
    UNIQUE (origin, media_id)
);
CREATE INDEX known_media_unreferenced ON known_media (unreferenced_ts) WHERE unreferenced_ts IS NOT NULL;

-- Which event refers to which file. Written by a job that follows the events by their numbers.
CREATE TABLE media_in_events (
    media_nid BIGINT NOT NULL,
    event_nid BIGINT NOT NULL,
    room_nid BIGINT NOT NULL,
    -- 0 the event shows it, 1 as the picture of a member, 2 as the picture of the room; 3 its sender said that it belongs to it
    role INTEGER NOT NULL,
    PRIMARY KEY (media_nid, event_nid)
) CLUSTERED;
CREATE INDEX media_in_events_by_room ON media_in_events (room_nid, event_nid);

-- Which profile, and which account data, refers to which file
CREATE TABLE media_in_settings (
    user_id TEXT NOT NULL,
    -- 0 a field of the profile, 1 account data
    kind INTEGER NOT NULL,
    -- the field; or the id of the room, empty where it is of none, a space, and the type
    name TEXT NOT NULL,
    media_nid BIGINT NOT NULL,
    PRIMARY KEY (user_id, kind, name, media_nid)
) CLUSTERED;
CREATE INDEX media_in_settings_by_media ON media_in_settings (media_nid);

-- What has to be looked at, since a reference may have gone with it
CREATE TABLE media_rechecks (
    -- 0 an event has lost its content, 1 nobody here remembers a room any more, 2 an account was erased, 3 a setting has changed
    kind INTEGER NOT NULL,
    -- the number of the event, of the room, or of the file
    nid BIGINT NOT NULL,
    user_id TEXT NOT NULL,
    -- how far it was looked at: the number of an event of the room, the time of an upload of the user
    upto BIGINT NOT NULL,
    PRIMARY KEY (kind, nid, user_id)
) CLUSTERED;

-- Whether anybody of ours is in a room, or was and has not forgotten it
CREATE INDEX memberships_remembered ON memberships (room_nid) WHERE is_local = 1 AND forgotten = 0;

CREATE INDEX media_by_access ON media (last_access_ts) WHERE hash IS NOT NULL AND quarantined = 0 AND protected = 0;

-- Who holds it back: the id of an administrator, or `system` where the same bytes were held back already
ALTER TABLE media ADD COLUMN quarantined_by TEXT;
ALTER TABLE remote_media ADD COLUMN quarantined_by TEXT;

-- Files that were held back or given free, in order
CREATE TABLE quarantine_changes (
    change_nid ROW_NUMBER NOT NULL PRIMARY KEY,
    origin TEXT NOT NULL,
    media_id TEXT NOT NULL,
    quarantined INTEGER NOT NULL
);

-- Files that were deleted: when, and why
CREATE TABLE deleted_media (
    deletion_nid ROW_NUMBER NOT NULL PRIMARY KEY,
    deleted_ts BIGINT NOT NULL,
    origin TEXT NOT NULL,
    media_id TEXT NOT NULL,
    -- who had uploaded it, of this server's
    user_id TEXT,
    hash BYTES NOT NULL,
    type TEXT NOT NULL,
    size BIGINT NOT NULL,
    created_ts BIGINT NOT NULL,
    -- unreferenced, unread, uploader, administrator, …
    reason TEXT NOT NULL,
    -- who wished it; NULL where it was a rule
    by_user_id TEXT
);
CREATE INDEX deleted_media_by_time ON deleted_media (deleted_ts);
CREATE INDEX deleted_media_by_address ON deleted_media (origin, media_id);
