-- End-to-end encryption: what devices publish of themselves, what they send to each other, and what is kept for them.

-- The identity keys of devices, as uploaded (canonical JSON without `unsigned`)
CREATE TABLE device_keys (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    keys BYTES NOT NULL,
    PRIMARY KEY (user_id, device_id)
);

-- One-time keys, given out once each, the oldest first
CREATE TABLE one_time_keys (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    -- order of upload
    key_nid BIGINT NOT NULL,
    key_id TEXT NOT NULL,
    content BYTES NOT NULL,
    PRIMARY KEY (user_id, device_id, algorithm, key_nid)
);
CREATE UNIQUE INDEX one_time_keys_by_id ON one_time_keys (user_id, device_id, algorithm, key_id);

-- What is given out when there is no one-time key left
CREATE TABLE fallback_keys (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    key_id TEXT NOT NULL,
    content BYTES NOT NULL,
    used INTEGER NOT NULL,
    PRIMARY KEY (user_id, device_id, algorithm)
);

-- A user's keys of cross-signing, as uploaded
CREATE TABLE cross_signing_keys (
    user_id TEXT NOT NULL,
    -- master, self_signing or user_signing
    usage TEXT NOT NULL,
    -- the public key itself, unpadded base64: the name under which it signs
    public_key TEXT NOT NULL,
    content BYTES NOT NULL,
    PRIMARY KEY (user_id, usage)
);

-- Signatures on devices and cross-signing keys that came after these
CREATE TABLE key_signatures (
    -- whose key is signed, and which: a device id or a public key
    target_user_id TEXT NOT NULL,
    target_key TEXT NOT NULL,
    signer_user_id TEXT NOT NULL,
    -- ed25519:…
    signer_key_id TEXT NOT NULL,
    signature TEXT NOT NULL,
    PRIMARY KEY (target_user_id, target_key, signer_user_id, signer_key_id)
);

-- Messages to devices, kept until the device comes back with a token of after them
CREATE TABLE to_device_messages (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    position BIGINT NOT NULL,
    -- the event as the device gets it: type, sender, content
    content BYTES NOT NULL,
    PRIMARY KEY (user_id, device_id, position)
);

-- Backups of room keys, each with versions
CREATE TABLE key_backups (
    user_id TEXT NOT NULL,
    version BIGINT NOT NULL,
    algorithm TEXT NOT NULL,
    auth_data BYTES NOT NULL,
    etag BIGINT NOT NULL,
    key_count BIGINT NOT NULL,
    deleted INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (user_id, version)
);

CREATE TABLE backed_up_keys (
    user_id TEXT NOT NULL,
    version BIGINT NOT NULL,
    room_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    first_message_index BIGINT NOT NULL,
    forwarded_count BIGINT NOT NULL,
    is_verified INTEGER NOT NULL,
    session_data BYTES NOT NULL,
    PRIMARY KEY (user_id, version, room_id, session_id)
);

-- Who came into rooms and left them since some position
CREATE INDEX memberships_by_position ON memberships (room_nid, position);
