--! Previous: sha1:4caaa7a4f7cc14108943264d837e382c44c7b612
--! Hash: sha1:83f59d0f3f5b9761dde54f115993aa2cb5657219
--! Message: tenant-integrity-and-service-state

-- What the service needs beyond the initial schema. Columns added to its tables are nullable or have a default, so that
-- a bulk load which does not know them stays valid. Nothing of the initial schema is dropped or renamed.

-- Users: a contact is verified on the user; the flags of an identity are its provider's claim.
ALTER TABLE users
  ADD COLUMN email_verified_utc TIMESTAMPTZ,
  ADD COLUMN phone_verified_utc TIMESTAMPTZ,
  ADD COLUMN erased_utc TIMESTAMPTZ,
  ADD CONSTRAINT users_email_verified_check CHECK (email_verified_utc IS NULL OR email_addr IS NOT NULL),
  ADD CONSTRAINT users_phone_verified_check CHECK (phone_verified_utc IS NULL OR phone_e164 IS NOT NULL),
  -- An erased user keeps its id and nothing personal, and never acts again.
  ADD CONSTRAINT users_erased_check CHECK (
    erased_utc IS NULL
    OR (user_state_code = 'inactive' AND email_addr IS NULL AND phone_e164 IS NULL AND display_label IS NULL)
  ),
  -- Makes (tenant_id, user_id) a target of foreign keys, and serves ListUsers.
  ADD CONSTRAINT users_tenant_user_key UNIQUE (tenant_id, user_id);

-- Prefix search is a range, which an index answers only under the collation of bytes, whatever the database's own is.
CREATE INDEX idx_users_tenant_email_c ON users (tenant_id, email_addr COLLATE "C", user_id);
CREATE INDEX idx_users_tenant_phone_c ON users (tenant_id, phone_e164 COLLATE "C", user_id);
CREATE INDEX idx_users_tenant_label_c ON users (tenant_id, display_label COLLATE "C", user_id);
-- Erased users are inactive too: apart, neither list pages through the other's rows.
CREATE INDEX idx_users_tenant_state ON users (tenant_id, user_state_code, user_id) WHERE erased_utc IS NULL;
CREATE INDEX idx_users_tenant_erased ON users (tenant_id, user_id) WHERE erased_utc IS NOT NULL;

-- Org nodes
ALTER TABLE org_nodes
  ADD CONSTRAINT org_nodes_tenant_node_key UNIQUE (tenant_id, org_node_id),
  -- The database holds tenants apart: a row cannot name another tenant's row, whatever the code does.
  ADD CONSTRAINT org_nodes_tenant_parent_fkey
    FOREIGN KEY (tenant_id, parent_org_node_id) REFERENCES org_nodes (tenant_id, org_node_id);

CREATE INDEX idx_org_nodes_children ON org_nodes (tenant_id, parent_org_node_id, org_node_id);
-- A decision asks whether any ancestor is inactive; few are, so this index stays small and the nodes are not read.
CREATE INDEX idx_org_nodes_inactive ON org_nodes (org_node_id) WHERE NOT active_flag;

-- Org node paths. No tenant foreign keys: at one row for each pair of ancestor and descendant they are too dear.
CREATE INDEX idx_org_path_desc_ancestor
  ON org_node_paths (descendant_org_node_id, ancestor_org_node_id) INCLUDE (depth_val);
CREATE INDEX idx_org_path_ancestor_depth
  ON org_node_paths (ancestor_org_node_id, depth_val, descendant_org_node_id);

-- Roles: what ended keeps its history, so a deleted role stays as a row.
ALTER TABLE roles
  ADD COLUMN deleted_utc TIMESTAMPTZ,
  ADD CONSTRAINT roles_tenant_role_key UNIQUE (tenant_id, role_id);

CREATE INDEX idx_roles_tenant_live ON roles (tenant_id, role_id) WHERE deleted_utc IS NULL;
-- From a capability to its roles: for decisions, and for deleting a capability.
CREATE INDEX idx_role_caps_cap ON role_capabilities (cap_id, role_id);
CREATE INDEX idx_capabilities_key_c ON capabilities (cap_key COLLATE "C");

-- Refresh sessions
ALTER TABLE refresh_sessions
  ADD COLUMN generation INT NOT NULL DEFAULT 0,
  ADD COLUMN refreshed_utc TIMESTAMPTZ,
  ADD COLUMN hard_expiry_utc TIMESTAMPTZ,
  ADD COLUMN refresh_seed BYTEA,
  ADD COLUMN end_reason_code TEXT,
  ADD CONSTRAINT refresh_sessions_generation_check CHECK (generation >= 0),
  -- expiry_utc is the idle expiry, which a refresh moves; it never passes the end that the login set.
  ADD CONSTRAINT refresh_sessions_hard_expiry_check CHECK (hard_expiry_utc IS NULL OR expiry_utc <= hard_expiry_utc),
  ADD CONSTRAINT refresh_sessions_end_reason_check CHECK (end_reason_code IS NULL OR revoked_utc IS NOT NULL),
  ADD CONSTRAINT refresh_sessions_tenant_user_fkey
    FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, user_id);

CREATE INDEX idx_refresh_user_session ON refresh_sessions (user_id, session_id);
CREATE INDEX idx_refresh_user_live ON refresh_sessions (user_id, session_id) WHERE revoked_utc IS NULL;
-- The addresses that a user lately logged in from have throttle buckets of their own.
CREATE INDEX idx_refresh_user_created ON refresh_sessions (user_id, created_utc) INCLUDE (client_ip_text);
-- For the purge, which finds sessions by the end that came first.
CREATE INDEX idx_refresh_expiry ON refresh_sessions (expiry_utc);
CREATE INDEX idx_refresh_revoked ON refresh_sessions (revoked_utc) WHERE revoked_utc IS NOT NULL;

-- One-time codes: user_id is null where the code answers a request about nobody.
ALTER TABLE otp_codes
  ADD COLUMN user_id UUID,
  -- A composite foreign key with a null in it is not looked at: a user without tenant would escape it.
  ADD CONSTRAINT otp_codes_user_tenant_check CHECK (user_id IS NULL OR tenant_id IS NOT NULL),
  ADD CONSTRAINT otp_codes_tenant_user_fkey
    FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, user_id);

CREATE INDEX idx_otp_latest ON otp_codes (tenant_id, destination_text, purpose_code, created_utc DESC);
CREATE INDEX idx_otp_user ON otp_codes (user_id) WHERE user_id IS NOT NULL;
CREATE INDEX idx_otp_expiry ON otp_codes (expiry_utc);

-- Assignments: one that had not begun when it was ended is cancelled, since its end cannot precede its start.
ALTER TABLE org_assignments
  ADD COLUMN cancelled_utc TIMESTAMPTZ,
  ADD CONSTRAINT org_assignments_cancelled_check CHECK (cancelled_utc IS NULL OR cancelled_utc < start_utc),
  ADD CONSTRAINT org_assignments_tenant_user_fkey
    FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, user_id),
  ADD CONSTRAINT org_assignments_tenant_node_fkey
    FOREIGN KEY (tenant_id, org_node_id) REFERENCES org_nodes (tenant_id, org_node_id),
  ADD CONSTRAINT org_assignments_tenant_role_fkey
    FOREIGN KEY (tenant_id, role_id) REFERENCES roles (tenant_id, role_id);

-- Decisions probe by user and node and read nothing but these indexes.
CREATE INDEX idx_assign_user_node
  ON org_assignments (user_id, org_node_id) INCLUDE (role_id, start_utc, end_utc, cancelled_utc);
CREATE INDEX idx_assign_node_user
  ON org_assignments (org_node_id, user_id) INCLUDE (role_id, start_utc, end_utc, cancelled_utc);
-- ListAssignments by each of its filters.
CREATE INDEX idx_assign_tenant_list ON org_assignments (tenant_id, assignment_id);
CREATE INDEX idx_assign_user_list ON org_assignments (user_id, assignment_id);
CREATE INDEX idx_assign_node_list ON org_assignments (org_node_id, assignment_id);
CREATE INDEX idx_assign_role_list ON org_assignments (role_id, assignment_id);

-- Visibility grants, likewise.
ALTER TABLE visibility_grants
  ADD COLUMN cancelled_utc TIMESTAMPTZ,
  ADD CONSTRAINT visibility_grants_window_check CHECK (end_utc IS NULL OR end_utc > start_utc),
  ADD CONSTRAINT visibility_grants_cancelled_check CHECK (cancelled_utc IS NULL OR cancelled_utc < start_utc),
  ADD CONSTRAINT visibility_grants_tenant_user_fkey
    FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, user_id),
  ADD CONSTRAINT visibility_grants_tenant_node_fkey
    FOREIGN KEY (tenant_id, org_node_id) REFERENCES org_nodes (tenant_id, org_node_id);

CREATE INDEX idx_vis_user_node
  ON visibility_grants (user_id, org_node_id) INCLUDE (access_scope_code, start_utc, end_utc, cancelled_utc);
CREATE INDEX idx_vis_node_user
  ON visibility_grants (org_node_id, user_id) INCLUDE (access_scope_code, start_utc, end_utc, cancelled_utc);
CREATE INDEX idx_vis_tenant_list ON visibility_grants (tenant_id, grant_id);
CREATE INDEX idx_vis_tenant_scope_list ON visibility_grants (tenant_id, access_scope_code, grant_id);
CREATE INDEX idx_vis_user_list ON visibility_grants (user_id, grant_id);
CREATE INDEX idx_vis_node_list ON visibility_grants (org_node_id, grant_id);

-- Invitations
ALTER TABLE invitations
  ADD COLUMN revoked_utc TIMESTAMPTZ,
  ADD COLUMN accepted_user_id UUID,
  ADD CONSTRAINT invitations_target_check CHECK ((target_role_id IS NULL) = (target_org_node_id IS NULL)),
  ADD CONSTRAINT invitations_end_check CHECK (accepted_utc IS NULL OR revoked_utc IS NULL),
  ADD CONSTRAINT invitations_accepted_user_check CHECK (accepted_user_id IS NULL OR accepted_utc IS NOT NULL),
  ADD CONSTRAINT invitations_tenant_inviter_fkey
    FOREIGN KEY (tenant_id, invited_by_user_id) REFERENCES users (tenant_id, user_id),
  ADD CONSTRAINT invitations_tenant_accepted_user_fkey
    FOREIGN KEY (tenant_id, accepted_user_id) REFERENCES users (tenant_id, user_id),
  ADD CONSTRAINT invitations_tenant_role_fkey
    FOREIGN KEY (tenant_id, target_role_id) REFERENCES roles (tenant_id, role_id),
  ADD CONSTRAINT invitations_tenant_node_fkey
    FOREIGN KEY (tenant_id, target_org_node_id) REFERENCES org_nodes (tenant_id, org_node_id);

CREATE INDEX idx_invite_tenant_list ON invitations (tenant_id, invite_id);
-- ListInvitations by state; pending and expired differ by the clock alone.
CREATE INDEX idx_invite_tenant_open
  ON invitations (tenant_id, invite_id) WHERE accepted_utc IS NULL AND revoked_utc IS NULL;
CREATE INDEX idx_invite_tenant_accepted ON invitations (tenant_id, invite_id) WHERE accepted_utc IS NOT NULL;
CREATE INDEX idx_invite_tenant_revoked ON invitations (tenant_id, invite_id) WHERE revoked_utc IS NOT NULL;
CREATE INDEX idx_invite_token ON invitations (invite_token_hash_text);
-- Erasing a user finds the invitations that hold its contacts or name it.
CREATE INDEX idx_invite_tenant_email ON invitations (tenant_id, email_addr) WHERE email_addr IS NOT NULL;
CREATE INDEX idx_invite_tenant_phone ON invitations (tenant_id, phone_e164) WHERE phone_e164 IS NOT NULL;
CREATE INDEX idx_invite_inviter ON invitations (invited_by_user_id) WHERE invited_by_user_id IS NOT NULL;
CREATE INDEX idx_invite_accepted_user ON invitations (accepted_user_id) WHERE accepted_user_id IS NOT NULL;
CREATE INDEX idx_invite_role ON invitations (target_role_id) WHERE target_role_id IS NOT NULL;
CREATE INDEX idx_invite_node ON invitations (target_org_node_id) WHERE target_org_node_id IS NOT NULL;

-- Tenants and services
CREATE INDEX idx_tenants_state ON tenants (tenant_state_code, tenant_id);
CREATE INDEX idx_services_tenant ON services (tenant_id, svc_id);
CREATE INDEX idx_services_state ON services (svc_state_code, svc_id);
CREATE INDEX idx_services_tenant_state ON services (tenant_id, svc_state_code, svc_id);
-- Finds the services that could be the last root without reading every permission.
CREATE INDEX idx_svc_permissions_root ON service_permissions (svc_id) WHERE perm_key = '*';

ALTER TABLE service_secrets
  ADD COLUMN last_used_utc TIMESTAMPTZ,
  ADD CONSTRAINT service_secrets_svc_secret_key UNIQUE (svc_id, secret_id);

ALTER TABLE service_sessions
  -- Null in rows that a bulk load made; revoking a secret ends the sessions that it opened.
  ADD COLUMN secret_id UUID,
  -- A token is allowed what both its session and its service cover. A session that names nothing is as wide as its
  -- service, whose present permissions bound it anyway.
  ADD COLUMN perm_keys TEXT[] NOT NULL DEFAULT '{*}',
  ADD CONSTRAINT service_sessions_svc_secret_fkey
    FOREIGN KEY (svc_id, secret_id) REFERENCES service_secrets (svc_id, secret_id);

CREATE INDEX idx_svc_session_svc ON service_sessions (svc_id, svc_session_id);
CREATE INDEX idx_svc_session_live ON service_sessions (svc_id, expiry_utc, svc_session_id) WHERE revoked_utc IS NULL;
CREATE INDEX idx_svc_session_secret ON service_sessions (secret_id) WHERE secret_id IS NOT NULL;
CREATE INDEX idx_svc_session_expiry ON service_sessions (expiry_utc);

-- Audit: lists are newest first, and the id breaks ties between events of one transaction.
ALTER TABLE audit_events
  ADD COLUMN actor_svc_id UUID,
  ADD CONSTRAINT audit_events_actor_svc_fkey FOREIGN KEY (actor_svc_id) REFERENCES services (svc_id);

CREATE INDEX idx_audit_tenant_list ON audit_events (tenant_id, occurred_utc DESC, audit_id DESC);
CREATE INDEX idx_audit_list ON audit_events (occurred_utc DESC, audit_id DESC);
CREATE INDEX idx_audit_entity_list ON audit_events (entity_id, occurred_utc DESC, audit_id DESC);
CREATE INDEX idx_audit_actor_user_list
  ON audit_events (actor_user_id, occurred_utc DESC, audit_id DESC) WHERE actor_user_id IS NOT NULL;

-- Neither ids nor times are the order of commits, so whoever read "after x" would lose events. Each mutation also puts
-- its event here; one replica at a time moves what is committed into audit_order, whose positions have no gaps.
CREATE TABLE audit_pending (
  audit_id UUID CONSTRAINT audit_pending_pkey PRIMARY KEY
    CONSTRAINT audit_pending_audit_fkey REFERENCES audit_events (audit_id)
);

CREATE TABLE audit_order (
  position_val BIGINT CONSTRAINT audit_order_pkey PRIMARY KEY,
  audit_id UUID NOT NULL CONSTRAINT audit_order_audit_key UNIQUE
    CONSTRAINT audit_order_audit_fkey REFERENCES audit_events (audit_id),
  -- The event's own, for watching one tenant without reading the others' events; null where the event has none.
  tenant_id UUID CONSTRAINT audit_order_tenant_fkey REFERENCES tenants (tenant_id),
  CONSTRAINT audit_order_position_check CHECK (position_val > 0)
);
CREATE INDEX idx_audit_order_tenant ON audit_order (tenant_id, position_val);

-- One row: the last position given out. Who holds its lock moves events.
CREATE TABLE audit_head (
  head_flag BOOLEAN NOT NULL DEFAULT TRUE CONSTRAINT audit_head_pkey PRIMARY KEY,
  position_val BIGINT NOT NULL DEFAULT 0,
  CONSTRAINT audit_head_single_check CHECK (head_flag),
  CONSTRAINT audit_head_position_check CHECK (position_val >= 0)
);
INSERT INTO audit_head DEFAULT VALUES;

-- Writers of one tenant's tree are serialised by a row of their own: a lock on the tenant itself would make every login
-- wait, since a foreign key's KEY SHARE waits for it. A writer makes the row where a tenant has none yet.
CREATE TABLE tenant_tree_locks (
  tenant_id UUID CONSTRAINT tenant_tree_locks_pkey PRIMARY KEY
    CONSTRAINT tenant_tree_locks_tenant_fkey REFERENCES tenants (tenant_id)
);

-- Throttles are shared by all replicas; a key is a hash, so that no contact or address stands here.
CREATE TABLE throttles (
  throttle_key_hash TEXT CONSTRAINT throttles_pkey PRIMARY KEY,
  hit_count INT NOT NULL DEFAULT 0,
  window_end_utc TIMESTAMPTZ NOT NULL,
  CONSTRAINT throttles_hit_count_check CHECK (hit_count >= 0)
);
CREATE INDEX idx_throttles_window_end ON throttles (window_end_utc);
