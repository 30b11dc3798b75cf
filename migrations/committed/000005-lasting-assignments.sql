--! Previous: sha1:8b39c0005cacdaec6f0cbc8cdb363d8a82b7a771
--! Hash: sha1:9d2c7f516ac90ac9c01d6478185fb74b948464a8
--! Message: lasting-assignments

-- What has ended stays for its history, and a user may have had very much on one node: decisions find what has not by the
-- index, or each check would read all of it. Infinite where no end is planned, and never for what was cancelled.
-- The indexes go first, for the table is written anew; and each table has a migration of its own, for nobody reads it
-- meanwhile.
DROP INDEX idx_assign_user_node, idx_assign_node_user;
ALTER TABLE org_assignments ADD COLUMN lasts_utc TIMESTAMPTZ GENERATED ALWAYS AS
  (CASE WHEN cancelled_utc IS NULL THEN coalesce(end_utc, 'infinity') ELSE '-infinity' END) STORED;
CREATE INDEX idx_assign_user_node ON org_assignments (user_id, org_node_id, lasts_utc) INCLUDE (role_id, start_utc);
CREATE INDEX idx_assign_node_user ON org_assignments (org_node_id, user_id, lasts_utc) INCLUDE (role_id, start_utc);
