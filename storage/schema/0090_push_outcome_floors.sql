-- Up to where the rows of push_outcomes of a user in a room may have been removed: read long ago
CREATE TABLE push_outcome_floors (
    user_id TEXT NOT NULL,
    room_nid BIGINT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (user_id, room_nid)
) CLUSTERED;
