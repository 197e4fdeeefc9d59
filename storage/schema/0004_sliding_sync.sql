-- Sliding sync: what the server remembers of the connections of clients.

-- The state of a connection after an answer that changed it. Two are kept of each connection: an answer may get lost.
CREATE TABLE sliding_connections (
    user_id TEXT NOT NULL,
    -- '' for a token without a device
    device_id TEXT NOT NULL,
    -- the name that the client gives it, '' where it gives none
    conn_id TEXT NOT NULL,
    -- part of the `pos` that the client holds
    state_nid BIGINT NOT NULL,
    used_ts BIGINT NOT NULL,
    -- which rooms were sent and with what: msgpack
    state BYTES NOT NULL,
    PRIMARY KEY (user_id, device_id, conn_id, state_nid)
);
CREATE INDEX sliding_connections_by_age ON sliding_connections (used_ts);
