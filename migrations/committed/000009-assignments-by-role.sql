--! Previous: sha1:97d431a58f8faf507b54c90b9ae74f873744affe
--! Hash: sha1:96511ae61384bb18cdc4c7e740d768bb207d92bd
--! Message: assignments-by-role

-- Who has thousands of assignments that go on, on one line of the tree, has few roles by them: decisions find what a user has
-- by role, and never visit what has none of those that matter.
CREATE INDEX idx_assign_user_role ON org_assignments (user_id, role_id, org_node_id, lasts_utc) INCLUDE (start_utc);

-- Both are functions since what stands in a statement is set up each time, where it is not reached too, and in PL/pgSQL
-- since that keeps its plans for a connection.

-- The roles of a user's assignments that have the capability, wherever and whenever the user has them. It goes through both
-- in the order of roles, each from where the other is: the fewer of them are its steps.
CREATE FUNCTION roles_by_capability(asked_user_id UUID, asked_cap_id UUID) RETURNS SETOF UUID
LANGUAGE plpgsql STABLE PARALLEL SAFE ROWS 10 AS $$
BEGIN
  RETURN QUERY
  WITH RECURSIVE steps (role_id, held_id) AS (
    SELECT NULL::uuid, '00000000-0000-0000-0000-000000000000'::uuid
    UNION ALL
    SELECT able.role_id, (
      SELECT a.role_id FROM org_assignments a
      WHERE a.user_id = asked_user_id AND a.role_id >= able.role_id
      ORDER BY a.role_id
      LIMIT 1)
    FROM steps s
    CROSS JOIN LATERAL (
      SELECT h.role_id FROM role_capabilities h
      WHERE h.cap_id = asked_cap_id AND h.role_id >= s.held_id AND (h.role_id > s.role_id) IS NOT FALSE
      ORDER BY h.role_id
      LIMIT 1
    ) able
  )
  SELECT s.role_id FROM steps s WHERE s.held_id = s.role_id;
END
$$;

-- Whether an assignment with one of them stands on one of the nodes, now.
CREATE FUNCTION holds_by_role(asked_user_id UUID, asked_node_ids UUID[], asked_cap_id UUID) RETURNS BOOLEAN
LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
BEGIN
  RETURN EXISTS (
    SELECT FROM roles_by_capability(asked_user_id, asked_cap_id) AS able (role_id)
    CROSS JOIN unnest(asked_node_ids) AS node (id)
    CROSS JOIN LATERAL (
      SELECT FROM org_assignments a
      WHERE a.user_id = asked_user_id AND a.role_id = able.role_id AND a.org_node_id = node.id
        AND a.start_utc <= now() AND a.lasts_utc > now()
      LIMIT 1
    ) granted
  );
END
$$;
