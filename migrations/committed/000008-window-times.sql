--! Previous: sha1:babf1662670f8f3a58d885a895825f58152970e9
--! Hash: sha1:97d431a58f8faf507b54c90b9ae74f873744affe
--! Message: window-times

-- When an assignment or a grant begins and ends is told as a Timestamp, which knows the years 1 to 9999: a row that says
-- otherwise could be neither read nor ended. An end that a bulk load wrote as infinite is one that never comes: none.
UPDATE org_assignments SET end_utc = NULL WHERE end_utc = 'infinity';
UPDATE visibility_grants SET end_utc = NULL WHERE end_utc = 'infinity';
ALTER TABLE org_assignments ADD CONSTRAINT org_assignments_times_check CHECK (
  start_utc >= '0001-01-01 00:00:00+00' AND start_utc < '10000-01-01 00:00:00+00' AND end_utc < '10000-01-01 00:00:00+00'
  AND cancelled_utc >= '0001-01-01 00:00:00+00');
ALTER TABLE visibility_grants ADD CONSTRAINT visibility_grants_times_check CHECK (
  start_utc >= '0001-01-01 00:00:00+00' AND start_utc < '10000-01-01 00:00:00+00' AND end_utc < '10000-01-01 00:00:00+00'
  AND cancelled_utc >= '0001-01-01 00:00:00+00');
