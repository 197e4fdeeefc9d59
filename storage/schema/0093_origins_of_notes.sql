-- Which server a message to a device came from: of each a bounded number is noted. Notes from before have none, and go when they are old
ALTER TABLE received_to_device ADD COLUMN origin TEXT NOT NULL DEFAULT '';
CREATE INDEX received_to_device_by_origin ON received_to_device (origin, received_ts);
