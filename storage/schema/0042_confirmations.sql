-- When somebody last confirmed, on a device, who they are
CREATE TABLE confirmations (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    confirmed_ts BIGINT NOT NULL,
    PRIMARY KEY (user_id, device_id)
) CLUSTERED;
