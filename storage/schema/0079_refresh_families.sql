-- What all refresh tokens of one session begin with, as a hash: so one that comes back after its successor was used is known
-- without being kept. None for sessions of the OAuth 2.0 API, which have theirs in oauth_sessions, and for tokens of before
ALTER TABLE refresh_tokens ADD COLUMN family_hash BYTES;
CREATE INDEX refresh_tokens_by_family ON refresh_tokens (family_hash) WHERE family_hash IS NOT NULL;
