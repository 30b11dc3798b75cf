--! Previous: sha1:9d2c7f516ac90ac9c01d6478185fb74b948464a8
--! Hash: sha1:d0cc9baf28048d3c64a49744f91d1fdce91d161a
--! Message: lasting-grants

-- As for assignments.
DROP INDEX idx_vis_user_node, idx_vis_node_user;
ALTER TABLE visibility_grants ADD COLUMN lasts_utc TIMESTAMPTZ GENERATED ALWAYS AS
  (CASE WHEN cancelled_utc IS NULL THEN coalesce(end_utc, 'infinity') ELSE '-infinity' END) STORED;
CREATE INDEX idx_vis_user_node
  ON visibility_grants (user_id, org_node_id, lasts_utc) INCLUDE (access_scope_code, start_utc);
CREATE INDEX idx_vis_node_user
  ON visibility_grants (org_node_id, user_id, lasts_utc) INCLUDE (access_scope_code, start_utc);
