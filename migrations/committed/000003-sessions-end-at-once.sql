--! Previous: sha1:83f59d0f3f5b9761dde54f115993aa2cb5657219
--! Hash: sha1:8e9adeb27bcf790c62b9e87b25b7bc5e62faa330
--! Message: sessions-end-at-once

-- Ending all sessions of a service or a secret is one mark, however many there are: a stolen secret cannot open so many
-- that the statement which ends them runs out of time. A purge writes revoked_utc into the rows that a mark has ended.
ALTER TABLE services ADD COLUMN sessions_ended_utc TIMESTAMPTZ;
ALTER TABLE service_secrets ADD COLUMN sessions_ended_utc TIMESTAMPTZ;
