-- A refresh token may be exchanged more than once before anything of what it was exchanged for is used: `from_nid` is the one that a token came
-- of, until it is used; `grace_until_ts`: until when it is good although another of them was used first; `spent_ts`: when it was replaced
ALTER TABLE refresh_tokens ADD COLUMN from_nid BIGINT;
ALTER TABLE refresh_tokens ADD COLUMN grace_until_ts BIGINT;
ALTER TABLE refresh_tokens ADD COLUMN spent_ts BIGINT;
UPDATE refresh_tokens SET from_nid =
    (SELECT o.refresh_nid FROM refresh_tokens o WHERE o.next_nid = refresh_tokens.refresh_nid)
    WHERE refresh_nid IN (SELECT o.next_nid FROM refresh_tokens o WHERE o.next_nid IS NOT NULL);
DROP INDEX refresh_tokens_by_next;
ALTER TABLE refresh_tokens DROP COLUMN next_nid;
CREATE INDEX refresh_tokens_by_origin ON refresh_tokens (from_nid) WHERE from_nid IS NOT NULL;
