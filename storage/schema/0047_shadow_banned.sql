-- Accounts whose events and invites go nowhere, without their being told
ALTER TABLE accounts ADD COLUMN shadow_banned INTEGER NOT NULL DEFAULT 0;
