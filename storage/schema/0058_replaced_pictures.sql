-- Pictures of members refer to files until the membership is another. What was replaced before is looked at once more
INSERT INTO media_rechecks (kind, nid, user_id, upto)
    SELECT DISTINCT 0, r.event_nid, '', 0 FROM media_in_events AS r JOIN events AS e ON e.event_nid = r.event_nid
    JOIN memberships AS m ON m.room_nid = e.room_nid AND m.user_id = e.state_key
    WHERE r.role = 1 AND m.event_nid > r.event_nid
    ON CONFLICT DO NOTHING;
