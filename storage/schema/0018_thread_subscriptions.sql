-- Which threads people follow (MSC4306)

CREATE TABLE thread_subscriptions (
    user_id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    -- id of the event that the thread begins at
    root TEXT NOT NULL,
    -- 0 once they follow it no longer
    subscribed INTEGER NOT NULL,
    -- 1 where a client subscribed them, since they were called in the thread
    automatic INTEGER NOT NULL,
    -- of the latest change
    position BIGINT NOT NULL,
    PRIMARY KEY (user_id, room_id, root)
) CLUSTERED;
CREATE INDEX thread_subscriptions_by_position ON thread_subscriptions (user_id, position);
