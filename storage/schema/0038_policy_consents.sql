-- Who has agreed to which version of the terms of service and other documents. A record stays when a later one is made.
CREATE TABLE policy_consents (
    user_id TEXT NOT NULL,
    policy_id TEXT NOT NULL,
    version TEXT NOT NULL,
    -- when, the first time
    ts BIGINT NOT NULL,
    PRIMARY KEY (user_id, policy_id, version)
);
CREATE INDEX policy_consents_by_version ON policy_consents (policy_id, version, user_id);
