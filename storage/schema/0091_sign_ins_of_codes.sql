-- JSON: the sign-in at an identity provider by which they came who let a program in: what the program begins belongs to that sign-in too
ALTER TABLE oauth_codes ADD COLUMN origin TEXT;
ALTER TABLE oauth_device_grants ADD COLUMN origin TEXT;
-- By what they are found when that sign-in ends: the provider, a space, and its name for it; null where it has none
ALTER TABLE login_tokens ADD COLUMN sign_in TEXT;
ALTER TABLE oauth_codes ADD COLUMN sign_in TEXT;
ALTER TABLE oauth_device_grants ADD COLUMN sign_in TEXT;
CREATE INDEX login_tokens_by_sign_in ON login_tokens (sign_in) WHERE sign_in IS NOT NULL;
CREATE INDEX oauth_codes_by_sign_in ON oauth_codes (sign_in) WHERE sign_in IS NOT NULL;
CREATE INDEX oauth_device_grants_by_sign_in ON oauth_device_grants (sign_in) WHERE sign_in IS NOT NULL;
-- What nobody has begun yet stands there now, and no longer in place of what runs
ALTER TABLE upstream_sessions DROP COLUMN awaited;
