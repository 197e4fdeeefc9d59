-- How far the blocks of one-time keys are given out stands in their marks alone, and claims are not logged any more.

DROP TABLE key_claims;
DROP TABLE gathered_claims;
ALTER TABLE one_time_key_marks RENAME COLUMN settled TO taken;
