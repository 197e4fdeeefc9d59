-- Events that came without their content and have it now: where in the sequence that was, so that other nodes read them anew
CREATE TABLE restored_contents (
    position BIGINT NOT NULL PRIMARY KEY,
    event_id TEXT NOT NULL
) CLUSTERED;
