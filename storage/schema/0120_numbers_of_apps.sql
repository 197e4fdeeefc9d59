-- Whose number of unread rooms may be another, for the process that pushes, where another one wrote: who came into a room (for an
-- invite counts too), and who changed whom they want to hear of
CREATE INDEX memberships_arrived ON memberships (position) WHERE membership = 'join' AND is_local = 1;
CREATE INDEX account_data_hiding ON account_data (position) WHERE room_id = '' AND type IN ('m.ignored_user_list',
    'm.invite_permission_config', 'org.matrix.msc4380.invite_permission_config', 'org.matrix.msc4155.invite_permission_config');
