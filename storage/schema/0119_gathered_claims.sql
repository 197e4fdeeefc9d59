-- What claims of one-time keys say is gathered in one row before marks are moved. Versions before this one would not look there; so the table
-- has another name now.

ALTER TABLE settled_claims RENAME TO gathered_claims;
-- of the latest claim that is in it
ALTER TABLE gathered_claims ADD COLUMN claimed_ts BIGINT;
-- as in key_claims, of all claims up to `upto` of which the marks do not tell yet; NULL where there are none
ALTER TABLE gathered_claims ADD COLUMN marks BYTES;
