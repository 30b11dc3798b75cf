--! Previous: sha1:d0cc9baf28048d3c64a49744f91d1fdce91d161a
--! Hash: sha1:babf1662670f8f3a58d885a895825f58152970e9
--! Message: uneven-holdings

-- Some users and nodes have thousands of times what others have, and a plan must serve these too: what a user has on a node
-- is looked up by the indexes of both, never by one that has all of the user's or all of the node's. By the average that
-- ANALYZE finds, a row for each or two, those look as cheap to the planner; by a hundredth of the rows they do not.
ALTER TABLE org_assignments
  ALTER COLUMN user_id SET (n_distinct = -0.01),
  ALTER COLUMN org_node_id SET (n_distinct = -0.01);
ALTER TABLE visibility_grants
  ALTER COLUMN user_id SET (n_distinct = -0.01),
  ALTER COLUMN org_node_id SET (n_distinct = -0.01);
ANALYZE org_assignments, visibility_grants;
