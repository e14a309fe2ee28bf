/*-------------------------------------------------------------------------
 *
 * session.c
 *		Acting as the extension, after the caller's right was checked; and as
 *		a table's owner, where code of his may run.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "access/xlog.h"
#include "base/session.h"
#include "catalog/pg_authid.h"
#include "utils/guc.h"

/*
 * Values and stored expressions are written and read back under these, so that
 * they mean the same to whoever does; and catalog queries see only the catalog.
 */
static const char *const meanings[][2] = {
	{"search_path", "pg_catalog, pg_temp"},
	{"timezone", "UTC"},
	{"datestyle", "ISO, YMD"},
	{"intervalstyle", "postgres"},
	{"extra_float_digits", "1"},
	{"bytea_output", "hex"},
	{"xmloption", "content"},
	{"lc_monetary", "C"},
	{"standard_conforming_strings", "on"},
	{"backslash_quote", "safe_encoding"},
	{"array_nulls", "on"},
	{"transform_null_equals", "off"},
};

/* undone by AtEOXact_GUC(true, level) or the transaction's abort */
int
mirror_fixed_settings(void)
{
	int			level = NewGUCNestLevel();

	for (int i = 0; i < lengthof(meanings); i++)
		(void) set_config_option(meanings[i][0], meanings[i][1], PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	return level;
}

void
elevate(Elevation *e)
{
	GetUserIdAndSecContext(&e->userid, &e->sec_context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID,
						   e->sec_context | SECURITY_LOCAL_USERID_CHANGE);
	e->guc_level = mirror_fixed_settings();
}

void
descend(const Elevation *e)
{
	AtEOXact_GUC(true, e->guc_level);
	SetUserIdAndSecContext(e->userid, e->sec_context);
}

void
become_owner(Elevation *e, Oid owner)
{
	GetUserIdAndSecContext(&e->userid, &e->sec_context);
	SetUserIdAndSecContext(owner, e->sec_context | SECURITY_RESTRICTED_OPERATION);
	e->guc_level = NewGUCNestLevel();
}

void
be_oneself(const Elevation *e)
{
	AtEOXact_GUC(false, e->guc_level);
	SetUserIdAndSecContext(e->userid, e->sec_context);
}

/*
 * What is set for all roles, for the database or for the server is not meant for
 * us: not the output of values, nor limits, nor how transactions begin.
 */
void
worker_pin_settings(void)
{
	static const char *const settings[][2] = {
		{"role", "none"},
		{"row_security", "off"},
		{"statement_timeout", "0"},
		{"lock_timeout", "500"},
		{"idle_in_transaction_session_timeout", "0"},
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_deferrable", "off"},
		{"session_replication_role", "origin"},
		{"synchronous_commit", "off"},
		{"enable_seqscan", "off"},
		{"enable_hashjoin", "off"},
		{"enable_mergejoin", "off"},
		{"enable_material", "off"},
		{"max_parallel_workers_per_gather", "0"},
		{"temp_file_limit", "1GB"},
		{"jit", "off"},
#if PG_VERSION_NUM >= 170000
		{"transaction_timeout", "0"},
#endif
		{"application_name", "crate_sync"},
	};

	for (int i = 0; i < lengthof(meanings); i++)
		SetConfigOption(meanings[i][0], meanings[i][1], PGC_SUSET, PGC_S_OVERRIDE);
	for (int i = 0; i < lengthof(settings); i++)
		SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET, PGC_S_OVERRIDE);
}

TimeLineID
worker_timeline(void)
{
#if PG_VERSION_NUM >= 150000
	return GetWALInsertionTimeLine();
#else
	return ThisTimeLineID;
#endif
}
