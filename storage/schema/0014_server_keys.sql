-- The keys of other servers

CREATE TABLE server_keys (
    server_name TEXT NOT NULL,
    key_id TEXT NOT NULL,
    public_key BYTES NOT NULL,
    -- milliseconds: what is signed after this is not valid
    valid_until BIGINT NOT NULL,
    PRIMARY KEY (server_name, key_id)
) CLUSTERED;

-- What a server said last about its keys, signed by itself, for who asks us for it
CREATE TABLE server_key_documents (
    server_name TEXT NOT NULL PRIMARY KEY,
    document BYTES NOT NULL,
    -- as the document says, at most seven days after it was fetched
    valid_until BIGINT NOT NULL,
    fetched_at BIGINT NOT NULL
);
