-- Who follows a thread: push rules may ask (MSC4306)

CREATE INDEX thread_subscriptions_by_thread ON thread_subscriptions (room_id, root) WHERE subscribed = 1;
