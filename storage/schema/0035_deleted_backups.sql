-- Backups of room keys that were deleted, as long as keys of theirs are left

CREATE INDEX key_backups_to_remove ON key_backups (user_id, version) WHERE deleted = 1 AND key_count > 0;
