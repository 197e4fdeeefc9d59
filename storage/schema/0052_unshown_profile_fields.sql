-- What shadow-banned accounts have set of their profiles since: they see it themselves, and nobody else
CREATE TABLE unshown_profile_fields (
    user_id TEXT NOT NULL,
    field TEXT NOT NULL,
    -- JSON; NULL for a field that they have removed
    value BYTES,
    PRIMARY KEY (user_id, field)
) CLUSTERED;
