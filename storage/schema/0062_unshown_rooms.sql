-- What shadow-banned accounts have made of rooms of this server: they see it themselves, and nobody else

-- That a room stands in the directory, or does not
CREATE TABLE unshown_listings (
    user_id TEXT NOT NULL,
    room_nid BIGINT NOT NULL,
    is_public INTEGER NOT NULL,
    PRIMARY KEY (user_id, room_nid)
) CLUSTERED;

-- What an alias of `room_aliases` points to
CREATE TABLE unshown_aliases (
    user_id TEXT NOT NULL,
    alias TEXT NOT NULL,
    -- NULL for one that they have removed
    room_nid BIGINT,
    PRIMARY KEY (user_id, alias)
) CLUSTERED;

-- Which room has taken the place of one
CREATE TABLE unshown_upgrades (
    user_id TEXT NOT NULL,
    room_nid BIGINT NOT NULL,
    successor_nid BIGINT NOT NULL,
    PRIMARY KEY (user_id, room_nid)
) CLUSTERED;
