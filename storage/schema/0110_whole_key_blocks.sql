-- Blocks of one-time keys never change: that all of a block was given out is seen in its mark. They have one index: those that are used up
-- go with the device's next upload.

DROP INDEX one_time_key_blocks_left;
ALTER TABLE one_time_key_blocks DROP COLUMN used_up;
