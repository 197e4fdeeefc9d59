-- E-mail addresses (and perhaps telephone numbers) that people have shown to be theirs
CREATE TABLE threepids (
    medium TEXT NOT NULL,
    -- as it is compared: e-mail addresses in small letters
    address TEXT NOT NULL,
    user_id TEXT NOT NULL,
    validated_ts BIGINT NOT NULL,
    added_ts BIGINT NOT NULL,
    PRIMARY KEY (medium, address)
) CLUSTERED;
CREATE INDEX threepids_by_user ON threepids (user_id);

-- Somebody is to show that an address is theirs, for one purpose
CREATE TABLE threepid_validations (
    sid TEXT NOT NULL PRIMARY KEY,
    -- register, add, password
    purpose TEXT NOT NULL,
    medium TEXT NOT NULL,
    address TEXT NOT NULL,
    client_secret TEXT NOT NULL,
    -- of the last letter's token; NULL where none was sent, since the address has no part in this
    token_hash BYTES,
    send_attempt BIGINT NOT NULL,
    next_link TEXT,
    created_ts BIGINT NOT NULL,
    validated_ts BIGINT
);
CREATE UNIQUE INDEX threepid_validations_by_client ON threepid_validations (client_secret, address, medium, purpose);
CREATE INDEX threepid_validations_by_age ON threepid_validations (created_ts);

-- Letters that are to be sent
CREATE TABLE outgoing_mail (
    mail_nid ROW_NUMBER NOT NULL PRIMARY KEY,
    -- not before
    next_ts BIGINT NOT NULL,
    created_ts BIGINT NOT NULL,
    attempts INTEGER NOT NULL,
    recipient TEXT NOT NULL,
    message BYTES NOT NULL
);
CREATE INDEX outgoing_mail_by_time ON outgoing_mail (next_ts);
