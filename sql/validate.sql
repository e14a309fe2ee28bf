--
-- What validate() and verifications say without a target and without a worker.
--
SET client_min_messages = error;
CREATE EXTENSION IF NOT EXISTS crate_sync;
SELECT crate_sync.stop() IS NOT NULL AS stopped;
CREATE SCHEMA val;
SET search_path = val;
CREATE TABLE plain (id int PRIMARY KEY);
SELECT * FROM crate_sync.validate('plain');
SELECT crate_sync.add_table('plain');
SELECT * FROM crate_sync.validate('plain');
SELECT count(*) FROM crate_sync.verifications;
CREATE ROLE regress_val;
SET ROLE regress_val;
SELECT * FROM crate_sync.validate('val.plain');
RESET ROLE;
GRANT USAGE ON SCHEMA crate_sync, val TO regress_val;
GRANT EXECUTE ON FUNCTION crate_sync.validate TO regress_val;
SET ROLE regress_val;
SELECT * FROM crate_sync.validate('val.plain');
RESET ROLE;
REVOKE ALL ON FUNCTION crate_sync.validate FROM regress_val;
REVOKE ALL ON SCHEMA crate_sync, val FROM regress_val;
DROP ROLE regress_val;
SELECT crate_sync.remove_table('plain');
DROP SCHEMA val CASCADE;
