/* crate_sync 1.0 to 1.1; what it ends with is what crate_sync--1.1.sql makes */

-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION crate_sync UPDATE TO '1.1'" to load this file. \quit

SET LOCAL search_path TO crate_sync, pg_temp;

/* ---------------------------------------------------------------------------
 * Catalog
 * ------------------------------------------------------------------------ */

ALTER TABLE mirror
	ADD COLUMN follow text NOT NULL DEFAULT 'table',
	ADD COLUMN source_schema name,
	ADD COLUMN source_name name,
	ADD COLUMN source_owner oid;
UPDATE mirror SET source_schema = n.nspname, source_name = c.relname, source_owner = c.relowner
	FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
	WHERE c.oid = mirror.relid;

ALTER TABLE mirror_state
	ADD COLUMN due text,
	ADD COLUMN due_again boolean NOT NULL DEFAULT false;

ALTER TABLE control ADD COLUMN start_no int NOT NULL DEFAULT 0;
ALTER TABLE worker_state ADD COLUMN start_done int NOT NULL DEFAULT 0;

ALTER TABLE failed
	ALTER COLUMN first_failed_time SET DEFAULT clock_timestamp(),
	ALTER COLUMN last_failed_time SET DEFAULT clock_timestamp();
ALTER TABLE difference ALTER COLUMN found_time SET DEFAULT clock_timestamp();
