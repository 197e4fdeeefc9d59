-- Accounts that were erased, and when: who comes into a room later gets what they sent there without content. Of those that were erased
-- before this table, only what last happened to the account is known
CREATE TABLE erasures (
    user_id TEXT NOT NULL PRIMARY KEY,
    position BIGINT NOT NULL
);
INSERT INTO erasures (user_id, position) SELECT user_id, position FROM accounts WHERE erased = 1;
CREATE INDEX erasures_by_position ON erasures (position);
