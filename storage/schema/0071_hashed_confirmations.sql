-- Whoever has the id of a session of user-interactive authentication may go on with it, and whoever has the secret of a client may use what
-- was confirmed for it: of both, the hash is kept (SHA-256, hexadecimal). What was under way before is found by nobody any more, and swept.
ALTER TABLE uia_sessions RENAME COLUMN session_id TO session_hash;
ALTER TABLE threepid_validations RENAME COLUMN client_secret TO client_secret_hash;
