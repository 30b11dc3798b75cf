--! Previous: sha1:8b39c0005cacdaec6f0cbc8cdb363d8a82b7a771
--! Hash: sha1:dde8b734b04000f5802029ca94181ffb8d5f8bc1
--! Message: lasting-windows

-- What has ended stays for its history, and a user may have had very much on one node: decisions find what has not by the
-- index, or each check would read all of it. Infinite where no end is planned, and never for what was cancelled.
ALTER TABLE org_assignments ADD COLUMN lasts_utc TIMESTAMPTZ GENERATED ALWAYS AS
  (CASE WHEN cancelled_utc IS NULL THEN coalesce(end_utc, 'infinity') ELSE '-infinity' END) STORED;
ALTER TABLE visibility_grants ADD COLUMN lasts_utc TIMESTAMPTZ GENERATED ALWAYS AS
  (CASE WHEN cancelled_utc IS NULL THEN coalesce(end_utc, 'infinity') ELSE '-infinity' END) STORED;

DROP INDEX idx_assign_user_node, idx_assign_node_user, idx_vis_user_node, idx_vis_node_user;
CREATE INDEX idx_assign_user_node ON org_assignments (user_id, org_node_id, lasts_utc) INCLUDE (role_id, start_utc);
CREATE INDEX idx_assign_node_user ON org_assignments (org_node_id, user_id, lasts_utc) INCLUDE (role_id, start_utc);
CREATE INDEX idx_vis_user_node
  ON visibility_grants (user_id, org_node_id, lasts_utc) INCLUDE (access_scope_code, start_utc);
CREATE INDEX idx_vis_node_user
  ON visibility_grants (org_node_id, user_id, lasts_utc) INCLUDE (access_scope_code, start_utc);
