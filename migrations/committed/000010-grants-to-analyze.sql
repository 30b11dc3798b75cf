--! Previous: sha1:96511ae61384bb18cdc4c7e740d768bb207d92bd
--! Hash: sha1:1599fd20ae1fff32a96d39624be8bb6668be672d
--! Message: grants-to-analyze

-- Who has thousands of grants to read that go on, on one node, may be asked for `analyze`: decisions find those alone.
CREATE INDEX idx_vis_user_analyze ON visibility_grants (user_id, org_node_id, lasts_utc) INCLUDE (start_utc)
  WHERE access_scope_code = 'analyze';
