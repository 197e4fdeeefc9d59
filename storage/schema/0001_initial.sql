-- The tables of a new Mahalla database. One text for SQLite and PostgreSQL; the words in capitals that are no SQL (BYTES,
-- ROW_NUMBER, CLUSTERED, ROOMY) are told apart in `storage/engine/migrate.py`. Times are milliseconds since 1970. A `_nid` is a number
-- that stands for a long identifier inside this database and never leaves it. `position` is a place in the one sequence.
-- Columns of a fixed length come first in tables with many rows: PostgreSQL then needs no padding between them.

-- Numbers that were given out: `position` is the one sequence; others number rooms, events, …
CREATE TABLE counters (
    name TEXT NOT NULL PRIMARY KEY,
    value BIGINT NOT NULL
) CLUSTERED;

---------------------------------------------------------------------------------------------------- rooms and events

-- A room that this server knows, and its head: what changes when an event is added.
CREATE TABLE rooms (
    room_nid ROW_NUMBER NOT NULL PRIMARY KEY,
    room_id TEXT NOT NULL UNIQUE,
    version TEXT NOT NULL,
    -- rises with every change of the head; a writer that read another one has to build its event again
    head_version BIGINT NOT NULL,
    -- JSON list of [event_nid, event_id] without successors among accepted events
    extremities TEXT NOT NULL,
    depth BIGINT NOT NULL,
    -- root of the current state in state_nodes; NULL while empty
    state_root BYTES,
    joined_count BIGINT NOT NULL DEFAULT 0,
    invited_count BIGINT NOT NULL DEFAULT 0,
    -- listed in this server's public room directory
    is_public INTEGER NOT NULL DEFAULT 0,
    creation_ts BIGINT NOT NULL
) ROOMY;
CREATE INDEX rooms_in_directory ON rooms (joined_count, room_nid) WHERE is_public = 1;

-- Every event, accepted or not. Nothing here changes, but for a redaction, which replaces pdu and sets redacted_by.
CREATE TABLE events (
    event_nid ROW_NUMBER NOT NULL PRIMARY KEY,
    room_nid BIGINT NOT NULL,
    -- arrival in the one sequence; NULL for outliers, for what was fetched from the past and for what was not accepted
    position BIGINT,
    depth BIGINT NOT NULL,
    origin_server_ts BIGINT NOT NULL,
    -- the event_nid of the state entry that this state event took the place of; NULL if there was none
    replaces BIGINT,
    -- the event_nid of the redaction that took the content away
    redacted_by BIGINT,
    -- bits: 1 outlier, 2 rejected, 4 soft-failed, 8 counts as unread, 16 stands in the timeline (accepted, no outlier),
    -- 32 calls the whole room, 64 calls some of our users (see highlights)
    flags INTEGER NOT NULL,
    event_id TEXT NOT NULL UNIQUE,
    type TEXT NOT NULL,
    state_key TEXT,
    sender TEXT NOT NULL,
    -- root of the state after this event; NULL for outliers
    state_root BYTES,
    pdu BYTES NOT NULL
);
CREATE INDEX events_by_position ON events (room_nid, position) WHERE position IS NOT NULL;
CREATE INDEX events_by_depth ON events (room_nid, depth, event_nid);

-- prev_events that we do not have: where the past of the room is still to be fetched
CREATE TABLE backward_extremities (
    room_nid BIGINT NOT NULL,
    event_id TEXT NOT NULL,
    PRIMARY KEY (room_nid, event_id)
) CLUSTERED;

-- Redactions by target, also those that came before their target
CREATE TABLE redactions (
    redacts TEXT NOT NULL,
    event_nid BIGINT NOT NULL,
    PRIMARY KEY (redacts, event_nid)
) CLUSTERED;
-- What was redacted since some redaction: numbers of events rise
CREATE INDEX redactions_by_event ON redactions (event_nid);

-- The dense numbering of a room's (type, state_key) pairs, the keys of its state tree
CREATE TABLE state_keys (
    room_nid BIGINT NOT NULL,
    key_nid BIGINT NOT NULL,
    type TEXT NOT NULL,
    state_key TEXT NOT NULL,
    PRIMARY KEY (room_nid, key_nid)
) CLUSTERED;
CREATE UNIQUE INDEX state_keys_by_name ON state_keys (room_nid, type, state_key);

-- Nodes of the rooms' state trees by the hash of their content. No two rooms have one in common, since event_nids are in
-- them; the room comes first so that a room's nodes lie together.
CREATE TABLE state_nodes (
    room_nid BIGINT NOT NULL,
    node BYTES NOT NULL,
    content BYTES NOT NULL,
    -- the mark of the last collection of garbage that met the node, 0 if none did (state_garbage_collection.py)
    cycle BIGINT NOT NULL,
    PRIMARY KEY (room_nid, node)
) CLUSTERED;

-- Rooms whose unused state nodes are being collected
CREATE TABLE state_collections (
    room_nid ROW_NUMBER NOT NULL PRIMARY KEY,
    -- an even number of its own for each collection, rising
    cycle BIGINT NOT NULL,
    -- how far it is: JSON
    progress TEXT NOT NULL
);

-- Chain cover of the auth graph: each state event has a place in a chain, and chains have links to others
CREATE TABLE auth_chain_places (
    event_nid ROW_NUMBER NOT NULL PRIMARY KEY,
    chain BIGINT NOT NULL,
    place BIGINT NOT NULL
);
CREATE UNIQUE INDEX auth_chain_places_by_chain ON auth_chain_places (chain, place);
-- From (chain, place) on, everything in target_chain up to target_place is in the auth chain
CREATE TABLE auth_chain_links (
    chain BIGINT NOT NULL,
    place BIGINT NOT NULL,
    target_chain BIGINT NOT NULL,
    target_place BIGINT NOT NULL,
    PRIMARY KEY (chain, place, target_chain)
) CLUSTERED;
CREATE INDEX auth_chain_links_by_target ON auth_chain_links (target_chain, target_place);

-- The current membership of everyone who ever had one in a room, local or not
CREATE TABLE memberships (
    room_nid BIGINT NOT NULL,
    user_id TEXT NOT NULL,
    membership TEXT NOT NULL,
    event_nid BIGINT NOT NULL,
    sender TEXT NOT NULL,
    -- of the event that set it
    position BIGINT NOT NULL,
    is_local INTEGER NOT NULL,
    display_name TEXT,
    avatar_url TEXT,
    -- the user has forgotten the room (only while not joined)
    forgotten INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (room_nid, user_id)
) CLUSTERED;
CREATE INDEX memberships_by_user ON memberships (user_id, membership);
CREATE INDEX memberships_of_ours ON memberships (room_nid, user_id) WHERE membership = 'join' AND is_local = 1;
CREATE INDEX memberships_by_kind ON memberships (room_nid, membership, event_nid);

-- What a directory of rooms shows, kept as the state changes
CREATE TABLE room_summaries (
    room_nid ROW_NUMBER NOT NULL PRIMARY KEY,
    name TEXT,
    topic TEXT,
    canonical_alias TEXT,
    avatar_url TEXT,
    join_rule TEXT,
    history_visibility TEXT,
    guest_access TEXT,
    room_type TEXT,
    encryption TEXT,
    -- 1 unless the room is confined to its creator's server
    federates INTEGER NOT NULL DEFAULT 1
);

CREATE TABLE room_aliases (
    alias TEXT NOT NULL PRIMARY KEY,
    room_nid BIGINT NOT NULL,
    creator TEXT NOT NULL,
    created_ts BIGINT NOT NULL
) CLUSTERED;
CREATE INDEX room_aliases_by_room ON room_aliases (room_nid);

-- Events flagged as calling a user by name or the whole room: the highlights
CREATE TABLE highlights (
    user_id TEXT NOT NULL,
    room_nid BIGINT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (user_id, room_nid, position)
) CLUSTERED;

-- What a client sent under which transaction id, so that a retried request never acts twice
CREATE TABLE sent_transactions (
    -- hash of all that names the request: user, device, method and path, transaction id
    request BYTES NOT NULL PRIMARY KEY,
    created_ts BIGINT NOT NULL,
    -- the event that was made; NULL where the request made none
    event_nid BIGINT,
    device_id TEXT NOT NULL,
    txn_id TEXT NOT NULL,
    -- the JSON body that was answered; NULL where it is the id of the event
    response BYTES
) CLUSTERED;
CREATE INDEX sent_transactions_by_event ON sent_transactions (event_nid) WHERE event_nid IS NOT NULL;
CREATE INDEX sent_transactions_by_age ON sent_transactions (created_ts);

CREATE TABLE receipts (
    room_nid BIGINT NOT NULL,
    user_id TEXT NOT NULL,
    -- m.read, m.read.private, m.fully_read is account data
    receipt_type TEXT NOT NULL,
    -- '' for an unthreaded receipt
    thread_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    -- arrival of the event that was read, where known
    event_position BIGINT,
    ts BIGINT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (room_nid, user_id, receipt_type, thread_id)
) CLUSTERED;
CREATE INDEX receipts_by_position ON receipts (room_nid, position);

--------------------------------------------------------------------------------------------------------- accounts

CREATE TABLE accounts (
    user_id TEXT NOT NULL PRIMARY KEY,
    -- a modular crypt string (Argon2id; bcrypt for accounts from elsewhere); NULL where there is no password
    password_hash TEXT,
    created_ts BIGINT NOT NULL,
    is_guest INTEGER NOT NULL DEFAULT 0,
    is_admin INTEGER NOT NULL DEFAULT 0,
    deactivated_ts BIGINT,
    erased INTEGER NOT NULL DEFAULT 0,
    locked INTEGER NOT NULL DEFAULT 0,
    suspended INTEGER NOT NULL DEFAULT 0,
    user_type TEXT,
    appservice_id TEXT,
    -- when its sessions, flags or password last changed: other nodes forget what they remember of it
    position BIGINT NOT NULL
);
CREATE INDEX accounts_by_position ON accounts (position);

-- Deactivated accounts that have not left all of their rooms yet
CREATE TABLE departing_accounts (
    user_id TEXT NOT NULL PRIMARY KEY
);

CREATE TABLE devices (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    display_name TEXT,
    created_ts BIGINT NOT NULL,
    last_seen_ts BIGINT,
    last_seen_ip TEXT,
    last_seen_user_agent TEXT,
    PRIMARY KEY (user_id, device_id)
);

-- When the list of a user's devices last changed
CREATE TABLE device_list_positions (
    user_id TEXT NOT NULL PRIMARY KEY,
    position BIGINT NOT NULL
);
CREATE INDEX device_list_positions_by_position ON device_list_positions (position);

-- Access tokens by the SHA-256 of their text
CREATE TABLE access_tokens (
    token_hash BYTES NOT NULL PRIMARY KEY,
    token_nid BIGINT NOT NULL UNIQUE,
    user_id TEXT NOT NULL,
    -- NULL for a token without a device (an administrator's "login as")
    device_id TEXT,
    created_ts BIGINT NOT NULL,
    expires_ts BIGINT,
    -- the refresh token that was given out with it
    refresh_nid BIGINT,
    -- 0 for the token of a refresh until it is used: then what it replaces ends
    first_used INTEGER NOT NULL DEFAULT 1
);
CREATE INDEX access_tokens_by_device ON access_tokens (user_id, device_id);
CREATE INDEX access_tokens_by_refresh ON access_tokens (refresh_nid) WHERE refresh_nid IS NOT NULL;

CREATE TABLE refresh_tokens (
    token_hash BYTES NOT NULL PRIMARY KEY,
    refresh_nid BIGINT NOT NULL UNIQUE,
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    created_ts BIGINT NOT NULL,
    expires_ts BIGINT,
    ultimate_expires_ts BIGINT,
    -- the refresh token that replaced it: it stays usable until the next one, or its access token, is used
    next_nid BIGINT
);
CREATE INDEX refresh_tokens_by_device ON refresh_tokens (user_id, device_id);
CREATE INDEX refresh_tokens_by_next ON refresh_tokens (next_nid) WHERE next_nid IS NOT NULL;

CREATE TABLE registration_tokens (
    token TEXT NOT NULL PRIMARY KEY,
    uses_allowed BIGINT,
    pending BIGINT NOT NULL DEFAULT 0,
    completed BIGINT NOT NULL DEFAULT 0,
    expires_ts BIGINT
);

-- User-interactive authentication that is under way
CREATE TABLE uia_sessions (
    session_id TEXT NOT NULL PRIMARY KEY,
    created_ts BIGINT NOT NULL,
    -- method and path of the request, and the user who is to confirm it, if any: a session serves no other
    operation TEXT NOT NULL,
    user_id TEXT,
    -- JSON object: stages completed, with their results
    completed TEXT NOT NULL,
    -- what the finished operation made (the user id that was registered), so that a repeated request finds it
    result TEXT
);
CREATE INDEX uia_sessions_by_age ON uia_sessions (created_ts);

CREATE TABLE profiles (
    user_id TEXT NOT NULL,
    -- displayname, avatar_url, m.tz, …
    field TEXT NOT NULL,
    -- JSON
    value BYTES NOT NULL,
    -- when it was set
    position BIGINT NOT NULL,
    PRIMARY KEY (user_id, field)
);

-- Account data, global ('' for the room) and of rooms; tags are m.tag
CREATE TABLE account_data (
    user_id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    type TEXT NOT NULL,
    -- JSON object
    content BYTES NOT NULL,
    -- deleted: the row stays, with {}, so that other devices hear of it
    deleted INTEGER NOT NULL DEFAULT 0,
    position BIGINT NOT NULL,
    PRIMARY KEY (user_id, room_id, type)
);
CREATE INDEX account_data_by_position ON account_data (user_id, position);

CREATE TABLE filters (
    user_id TEXT NOT NULL,
    filter_id BIGINT NOT NULL,
    -- canonical JSON
    definition TEXT NOT NULL,
    PRIMARY KEY (user_id, filter_id)
);
CREATE UNIQUE INDEX filters_by_definition ON filters (user_id, definition);

-- Local memberships a background job has to rewrite after a change of profile
CREATE TABLE profile_propagations (
    user_id TEXT NOT NULL PRIMARY KEY,
    position BIGINT NOT NULL
);

-- Small notes of background jobs
CREATE TABLE jobs (
    name TEXT NOT NULL PRIMARY KEY,
    progress TEXT NOT NULL
);
