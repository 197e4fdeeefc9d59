-- When somebody first let the program in; null: nobody has, and it goes soon. Those of before are taken as let in
ALTER TABLE oauth_clients ADD COLUMN allowed_ts BIGINT;
UPDATE oauth_clients SET allowed_ts = created_ts;
CREATE INDEX oauth_clients_never_allowed ON oauth_clients (last_used_ts) WHERE allowed_ts IS NULL;
CREATE INDEX oauth_codes_by_client ON oauth_codes (client_id);
CREATE INDEX oauth_device_grants_by_client ON oauth_device_grants (client_id);
