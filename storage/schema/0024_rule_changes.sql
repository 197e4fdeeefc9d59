-- For processes that hear that another one wrote: whose push rules have changed since a position, and which local members
-- of a room
CREATE INDEX account_data_push_rules ON account_data (position) WHERE type = 'm.push_rules' AND room_id = '';
CREATE INDEX memberships_of_ours_changed ON memberships (room_nid, position) WHERE is_local = 1;
