--! Previous: sha1:8e9adeb27bcf790c62b9e87b25b7bc5e62faa330
--! Hash: sha1:8b39c0005cacdaec6f0cbc8cdb363d8a82b7a771
--! Message: auth

-- What Auth needs beyond 000002. As there, columns are nullable or have a default, and nothing is dropped or renamed.

-- Guesses are counted before they are compared, and never beyond the bound, however many come at once.
ALTER TABLE otp_codes
  ADD CONSTRAINT otp_codes_attempt_check CHECK (attempt_count >= 0 AND attempt_count <= attempt_max);

-- How often in a row a bucket was full: the next wait is longer.
ALTER TABLE throttles
  ADD COLUMN strike_count INT NOT NULL DEFAULT 0,
  ADD CONSTRAINT throttles_strike_count_check CHECK (strike_count >= 0);

-- The networks that a user logs in from have throttle buckets of their own, so that nobody is locked out from there by
-- somebody else. By sessions it would take a read of all of them. A keyed hash, since an address is personal data.
CREATE TABLE login_networks (
  tenant_id UUID NOT NULL,
  user_id UUID NOT NULL,
  network_hash TEXT NOT NULL,
  last_login_utc TIMESTAMPTZ NOT NULL DEFAULT now(),
  CONSTRAINT login_networks_pkey PRIMARY KEY (user_id, network_hash),
  CONSTRAINT login_networks_tenant_user_fkey
    FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, user_id)
);
CREATE INDEX idx_login_networks_last ON login_networks (last_login_utc);

-- A queue's job is locked by the worker that sends it; what a worker held that is no longer seen is sent by another.
CREATE TABLE delivery_workers (
  worker_id TEXT CONSTRAINT delivery_workers_pkey PRIMARY KEY,
  seen_utc TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE INDEX idx_delivery_workers_seen ON delivery_workers (seen_utc);
