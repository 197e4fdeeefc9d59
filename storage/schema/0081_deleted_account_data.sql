-- What a user has deleted is not what they keep; the rows stay for a while, for those who read incrementally, and are counted apart
ALTER TABLE account_data_sums ADD COLUMN deleted BIGINT NOT NULL DEFAULT 0;
DELETE FROM account_data_sums;
INSERT INTO account_data_sums (user_id, entries, bytes, deleted)
    SELECT user_id, SUM(1 - deleted), SUM(CASE WHEN deleted = 1 THEN 0 ELSE length(content) END), SUM(deleted)
    FROM account_data GROUP BY user_id;
CREATE INDEX account_data_deleted ON account_data (user_id, position) WHERE deleted = 1;
