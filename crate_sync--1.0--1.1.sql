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

/* ---------------------------------------------------------------------------
 * Functions
 * ------------------------------------------------------------------------ */

-- one more argument; who may call it stays
CREATE TEMP TABLE crate_sync_grants ON COMMIT DROP AS
	SELECT a.grantee, a.is_grantable FROM pg_catalog.pg_proc p, pg_catalog.aclexplode(p.proacl) AS a
	WHERE p.oid = 'add_table(regclass, text, name[], text, name, jsonb, boolean, boolean)'::pg_catalog.regprocedure
	AND a.grantee <> p.proowner;
DROP FUNCTION add_table(regclass, text, name[], text, name, jsonb, boolean, boolean);
CREATE FUNCTION add_table(relation regclass,
						  target text DEFAULT NULL,
						  columns name[] DEFAULT NULL,
						  row_filter text DEFAULT NULL,
						  soft_delete_column name DEFAULT NULL,
						  options jsonb DEFAULT NULL,
						  copy_data boolean DEFAULT true,
						  if_not_exists boolean DEFAULT false,
						  follow text DEFAULT 'table')
	RETURNS text
	AS 'MODULE_PATHNAME', 'crate_sync_add_table' LANGUAGE C;
COMMENT ON FUNCTION add_table(regclass, text, name[], text, name, jsonb, boolean, boolean, text) IS
	'mirrors a table in the target; returns the target table''s name';

CREATE FUNCTION follow_name(relation regclass) RETURNS text
	AS 'MODULE_PATHNAME', 'crate_sync_follow_name' LANGUAGE C;
COMMENT ON FUNCTION follow_name(regclass) IS
	'has a table take the place of a mirrored one that was called so before; says what was done';

CREATE FUNCTION keep_table(relation regclass) RETURNS text
	AS 'MODULE_PATHNAME', 'crate_sync_keep_table' LANGUAGE C;
COMMENT ON FUNCTION keep_table(regclass) IS
	'goes on mirroring a table whose name was changed, as it is called now; says what was done';

-- its C function is one that the first version's library has, too, and that does
-- nothing there: a session that still has that one loaded can ALTER TABLE
CREATE FUNCTION before_attach() RETURNS event_trigger
	AS 'MODULE_PATHNAME', 'crate_sync_before_drop' LANGUAGE C;
COMMENT ON FUNCTION before_attach() IS
	'event trigger: says what to do where a mirrored table would become a partition of a mirrored one';
REVOKE ALL ON FUNCTION before_attach() FROM PUBLIC;
CREATE EVENT TRIGGER crate_sync_before_attach ON ddl_command_start
	WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION crate_sync.before_attach();

-- nobody else's, whatever ALTER DEFAULT PRIVILEGES says
DO $$
DECLARE
	f pg_catalog.regprocedure;
	grantee pg_catalog.text;
	with_option pg_catalog.bool;
BEGIN
	FOREACH f IN ARRAY ARRAY['add_table(regclass, text, name[], text, name, jsonb, boolean, boolean, text)',
			'follow_name(regclass)', 'keep_table(regclass)', 'before_attach()']::pg_catalog.regprocedure[]
	LOOP
		FOR grantee IN
			SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::pg_catalog.regrole::pg_catalog.text END
			FROM pg_catalog.pg_proc p,
				pg_catalog.aclexplode(coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) AS a
			WHERE p.oid = f AND a.grantee <> p.proowner
		LOOP
			EXECUTE 'REVOKE ALL ON FUNCTION ' || f::pg_catalog.text || ' FROM ' || grantee || ' CASCADE';
		END LOOP;
	END LOOP;
	FOR grantee, with_option IN
		SELECT CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::pg_catalog.regrole::pg_catalog.text END, g.is_grantable
		FROM crate_sync_grants g
	LOOP
		EXECUTE 'GRANT EXECUTE ON FUNCTION add_table TO ' || grantee || CASE WHEN with_option THEN ' WITH GRANT OPTION' ELSE '' END;
	END LOOP;
END $$;
DROP TABLE pg_temp.crate_sync_grants;
