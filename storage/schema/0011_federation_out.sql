-- What goes out to other servers, and what is kept of their users' devices.

-- The other servers that are in a room: how many of their users are joined
CREATE TABLE room_servers (
    room_nid BIGINT NOT NULL,
    server TEXT NOT NULL,
    joined_count BIGINT NOT NULL,
    -- when the first of them joined: what is older is not for the server
    since BIGINT NOT NULL,
    PRIMARY KEY (room_nid, server)
) CLUSTERED;

-- Events that this server tells others of (flag 256), in the order of the stream
CREATE INDEX events_to_send ON events (position) WHERE (flags & 256) <> 0;
-- Receipts that others may see, in the order of the stream
CREATE INDEX receipts_to_send ON receipts (position) WHERE receipt_type = 'm.read';

-- Who sends to other servers, until when, and up to which position of the stream nothing is left to tell but what the
-- tables below say
CREATE TABLE sender_lease (
    name TEXT NOT NULL PRIMARY KEY,
    holder TEXT NOT NULL,
    expires_ts BIGINT NOT NULL,
    -- rises each time that it is taken: part of the ids of transactions
    run BIGINT NOT NULL,
    position BIGINT NOT NULL
);

-- Servers that could not be reached when last tried, or once could not
CREATE TABLE destinations (
    server TEXT NOT NULL PRIMARY KEY,
    -- NULL while all is well
    failing_since_ts BIGINT,
    tried_ts BIGINT NOT NULL,
    -- pause after the last try; the next is at tried_ts + pause_ms
    pause_ms BIGINT NOT NULL,
    error TEXT
);

-- Rooms of which a server has missed events, and the position of the first
CREATE TABLE destination_rooms (
    server TEXT NOT NULL,
    room_nid BIGINT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (server, room_nid)
) CLUSTERED;

-- Our users of whose devices a server has missed changes, and the first of these
CREATE TABLE destination_users (
    server TEXT NOT NULL,
    user_id TEXT NOT NULL,
    stream_id BIGINT NOT NULL,
    PRIMARY KEY (server, user_id)
) CLUSTERED;

-- Messages to devices of other servers' users, until these have them: the content of the EDU
CREATE TABLE outgoing_to_device (
    server TEXT NOT NULL,
    position BIGINT NOT NULL,
    content BYTES NOT NULL,
    PRIMARY KEY (server, position)
);
CREATE INDEX outgoing_to_device_by_position ON outgoing_to_device (position);

-- Messages to devices that came from other servers, so that none is taken twice
CREATE TABLE received_to_device (
    sender TEXT NOT NULL,
    message_id TEXT NOT NULL,
    received_ts BIGINT NOT NULL,
    PRIMARY KEY (sender, message_id)
) CLUSTERED;
CREATE INDEX received_to_device_by_age ON received_to_device (received_ts);

-- The latest changes of our users' devices, as other servers are told of them
CREATE TABLE device_list_log (
    user_id TEXT NOT NULL,
    stream_id BIGINT NOT NULL,
    -- the user's change of a device before this one; 0 if there was none
    prev_id BIGINT NOT NULL,
    -- NULL: the keys of cross-signing
    device_id TEXT,
    PRIMARY KEY (user_id, stream_id)
) CLUSTERED;
CREATE INDEX device_list_log_by_stream ON device_list_log (stream_id);

-- Users of other servers whose devices are kept here
CREATE TABLE remote_device_lists (
    user_id TEXT NOT NULL PRIMARY KEY,
    -- the last change of theirs that we know of
    stream_id BIGINT NOT NULL,
    -- 1: some change was missed, so the list has to be fetched again
    is_stale INTEGER NOT NULL
);
CREATE INDEX remote_device_lists_stale ON remote_device_lists (user_id) WHERE is_stale = 1;

CREATE TABLE remote_devices (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    -- canonical JSON without `unsigned`
    keys BYTES NOT NULL,
    display_name TEXT,
    PRIMARY KEY (user_id, device_id)
);
