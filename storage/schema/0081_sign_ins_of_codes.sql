-- JSON: the sign-in at an identity provider by which they came who let a program in: what the program begins belongs to that sign-in too
ALTER TABLE oauth_codes ADD COLUMN origin TEXT;
ALTER TABLE oauth_device_grants ADD COLUMN origin TEXT;
-- What nobody has begun yet stands there now, and no longer in place of what runs
ALTER TABLE upstream_sessions DROP COLUMN awaited;
