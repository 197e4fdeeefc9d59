-- Addresses by which people are found at an identity server, as this server had them bound there
CREATE TABLE identity_bindings (
    user_id TEXT NOT NULL,
    medium TEXT NOT NULL,
    address TEXT NOT NULL,
    -- host, and port where it has one
    id_server TEXT NOT NULL,
    PRIMARY KEY (user_id, medium, address, id_server)
) CLUSTERED;
