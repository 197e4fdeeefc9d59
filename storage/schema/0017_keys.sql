-- Encryption: dehydrated devices, one-time keys that were given out, who signed whom, messages that nobody gets any more.

-- Devices that nobody is signed in on: they collect messages for the next device of their user. One a user
CREATE TABLE dehydrated_devices (
    user_id TEXT NOT NULL PRIMARY KEY,
    device_id TEXT NOT NULL,
    -- encrypted by the client, JSON
    device_data BYTES NOT NULL
);

-- One-time keys that were given out: an upload that is repeated late does not bring them back
CREATE TABLE claimed_one_time_keys (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    key_id TEXT NOT NULL,
    -- of the content: a client that began anew counts its keys from the start
    digest BYTES NOT NULL,
    claimed_ts BIGINT NOT NULL,
    PRIMARY KEY (user_id, device_id, algorithm, key_id, digest)
) CLUSTERED;
DELETE FROM one_time_keys WHERE key_nid < 0;
-- A device has few enough for its primary key to find them
DROP INDEX one_time_keys_by_id;

-- When somebody last signed a key of another user's: only they see that
CREATE TABLE user_signature_positions (
    signer_user_id TEXT NOT NULL,
    target_user_id TEXT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (signer_user_id, target_user_id)
) CLUSTERED;
-- Of a user with a thousand acquaintances their own signatures are found, and those of who asks, without the others
CREATE INDEX key_signatures_of_owners ON key_signatures (target_user_id) WHERE signer_user_id = target_user_id;
CREATE INDEX key_signatures_by_signer ON key_signatures (signer_user_id, target_user_id);

-- Messages up to that position that nobody gets any more: removed in small steps
CREATE TABLE to_device_floors (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (user_id, device_id)
) CLUSTERED;
