-- Search in messages, and the directory of people.

-- The texts that people can search for, by the event that they are shown with; the index of their keys goes with it
-- (text_index.py). Written by a job that follows the events by their numbers.
CREATE TABLE searchable_events (
    event_nid ROW_NUMBER NOT NULL PRIMARY KEY,
    -- the event that says it: itself, or its latest edit
    text_nid BIGINT NOT NULL,
    room_nid BIGINT NOT NULL,
    -- arrival of the event, as in `events`
    position BIGINT,
    ts BIGINT NOT NULL,
    -- what it is: 0 body of a message, 1 name of the room, 2 topic
    kind INTEGER NOT NULL,
    sender TEXT NOT NULL,
    -- its keys, each with a space before and after
    words TEXT NOT NULL
);
CREATE INDEX searchable_events_edited ON searchable_events (text_nid) WHERE text_nid <> event_nid;

CREATE VIRTUAL TABLE searchable_text USING fts5 (words, content = '', detail = none, columnsize = 0, tokenize = 'ascii');

-- Events that were outliers when the job came by, and have found their place since
CREATE TABLE placed_events (
    event_nid ROW_NUMBER NOT NULL PRIMARY KEY
);

-- People as the user directory shows them
CREATE TABLE directory_users (
    user_id TEXT NOT NULL PRIMARY KEY,
    is_local INTEGER NOT NULL,
    display_name TEXT,
    avatar_url TEXT,
    -- the keys of the display name, each with a space before and after
    name_keys TEXT NOT NULL
);

-- The keys by which people are found: of their name, of their id, and the id itself
CREATE TABLE directory_keys (
    word TEXT NOT NULL,
    user_id TEXT NOT NULL,
    PRIMARY KEY (word, user_id)
) CLUSTERED;
CREATE INDEX directory_keys_by_user ON directory_keys (user_id);

-- People of whom the directory does not have the latest
CREATE TABLE directory_changes (
    user_id TEXT NOT NULL PRIMARY KEY,
    -- of the latest change
    position BIGINT NOT NULL
);
INSERT INTO directory_changes (user_id, position)
    SELECT user_id, 0 FROM accounts UNION SELECT user_id, 0 FROM memberships WHERE is_local = 0;
