-- Each device has a number, so that what waits for it has a small index: a message to forty devices is forty entries in it.
-- No two ever have the same; those from before have negative ones.
ALTER TABLE devices ADD COLUMN device_nid BIGINT NOT NULL DEFAULT 0;
UPDATE devices AS d SET device_nid = -n.number FROM (
    SELECT user_id, device_id, row_number() OVER (ORDER BY user_id, device_id) AS number FROM devices
) AS n WHERE n.user_id = d.user_id AND n.device_id = d.device_id;
-- all that is asked of a device to which a message goes
CREATE UNIQUE INDEX devices_with_numbers ON devices (user_id, device_id, device_nid);

CREATE TABLE messages_to_devices (
    device_nid BIGINT NOT NULL,
    position BIGINT NOT NULL,
    -- the event as the device gets it: type, sender, content
    content BYTES NOT NULL
);
INSERT INTO messages_to_devices (device_nid, position, content)
    SELECT d.device_nid, m.position, m.content FROM to_device_messages AS m
    JOIN devices AS d ON d.user_id = m.user_id AND d.device_id = m.device_id ORDER BY m.position;
DROP TABLE to_device_messages;
ALTER TABLE messages_to_devices RENAME TO to_device_messages;
CREATE UNIQUE INDEX to_device_messages_of_devices ON to_device_messages (device_nid, position);

CREATE TABLE floors_of_devices (
    device_nid BIGINT NOT NULL,
    position BIGINT NOT NULL
);
INSERT INTO floors_of_devices (device_nid, position)
    SELECT d.device_nid, f.position FROM to_device_floors AS f
    JOIN devices AS d ON d.user_id = f.user_id AND d.device_id = f.device_id;
DROP TABLE to_device_floors;
ALTER TABLE floors_of_devices RENAME TO to_device_floors;
CREATE UNIQUE INDEX to_device_floors_of_devices ON to_device_floors (device_nid);
