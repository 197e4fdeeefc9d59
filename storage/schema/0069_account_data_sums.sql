-- How much account data a user keeps, deleted entries too, in entries and in bytes of content: it is bounded, and looked at with
-- each change
CREATE TABLE account_data_sums (
    user_id TEXT NOT NULL PRIMARY KEY,
    entries BIGINT NOT NULL,
    bytes BIGINT NOT NULL
) CLUSTERED;
INSERT INTO account_data_sums (user_id, entries, bytes)
    SELECT user_id, COUNT(*), SUM(length(content)) FROM account_data GROUP BY user_id;
