-- Which identity provider has said that it is the user's (`provider` of `external_ids`), and takes it away again when it says another;
-- NULL: they have confirmed it themselves, an administrator has, or it is from before this was noted
ALTER TABLE threepids ADD COLUMN vouched_by TEXT;
