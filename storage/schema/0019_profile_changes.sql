-- Fields of profiles that are no longer set, for those who hear of changes (MSC4262); of each user the latest

CREATE TABLE profile_removals (
    user_id TEXT NOT NULL,
    field TEXT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (user_id, field)
);
CREATE INDEX profile_removals_by_position ON profile_removals (position);
CREATE INDEX profiles_by_position ON profiles (position);
