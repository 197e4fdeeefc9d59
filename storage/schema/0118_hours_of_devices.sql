-- The hour since 1970 in which a device was seen last, where it is kept whence: that changes seldom, beside the time itself, so that its
-- index costs most sightings little
ALTER TABLE devices ADD COLUMN seen_hour BIGINT;
UPDATE devices SET seen_hour = last_seen_ts / 3600000
    WHERE last_seen_ts IS NOT NULL AND (last_seen_ip IS NOT NULL OR last_seen_user_agent IS NOT NULL);
CREATE INDEX devices_by_hour ON devices (seen_hour) WHERE seen_hour IS NOT NULL;
