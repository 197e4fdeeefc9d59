-- Where in the sequence the present stay in the room began, of this server's users who are in it: changes of their name are no new joining.
-- And where the last one ended, of those whose membership has changed more than twenty times since: it was not looked for so far back.
ALTER TABLE memberships ADD COLUMN joined_position BIGINT;
WITH RECURSIVE walk (room_nid, user_id, nid, began, hops) AS (
    SELECT m.room_nid, m.user_id, m.event_nid, COALESCE(e.position, m.position), 0
        FROM memberships AS m JOIN events AS e ON e.event_nid = m.event_nid
        WHERE m.is_local = 1 AND m.membership = 'join'
    UNION ALL
    SELECT w.room_nid, w.user_id, e.event_nid, COALESCE(e.position, w.began), w.hops + 1
        FROM walk AS w JOIN events AS l ON l.event_nid = w.nid JOIN events AS e ON e.event_nid = l.replaces
        WHERE w.hops < 100000
            AND json_extract(CAST(e.pdu AS TEXT), '$.content.membership') = 'join'
)
UPDATE memberships SET joined_position = found.began
    FROM (SELECT room_nid, user_id, MIN(began) AS began FROM walk GROUP BY room_nid, user_id) AS found
    WHERE memberships.room_nid = found.room_nid AND memberships.user_id = found.user_id;
WITH RECURSIVE walk (room_nid, user_id, nid, ended, membership, hops) AS (
    SELECT m.room_nid, m.user_id, m.event_nid, m.position,
            json_extract(CAST(e.pdu AS TEXT), '$.content.membership'), 0
        FROM memberships AS m JOIN events AS e ON e.event_nid = m.event_nid
        WHERE m.is_local = 1 AND m.membership <> 'join' AND m.left_position IS NULL
    UNION ALL
    SELECT w.room_nid, w.user_id, l.replaces, COALESCE(l.position, 0),
            json_extract(CAST(e.pdu AS TEXT), '$.content.membership'), w.hops + 1
        FROM walk AS w JOIN events AS l ON l.event_nid = w.nid JOIN events AS e ON e.event_nid = l.replaces
        WHERE w.membership <> 'join' AND w.hops < 100000
)
UPDATE memberships SET left_position = found.ended
    FROM (SELECT room_nid, user_id, ended FROM walk WHERE membership = 'join') AS found
    WHERE memberships.room_nid = found.room_nid AND memberships.user_id = found.user_id;
