-- Files by age, oldest first, for those that go by it
CREATE INDEX media_by_age ON media (created_ts) WHERE hash IS NOT NULL AND quarantined = 0 AND protected = 0;
CREATE INDEX remote_media_by_age ON remote_media (created_ts) WHERE quarantined = 0;
