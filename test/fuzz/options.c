/*-------------------------------------------------------------------------
 *
 * options.c
 *		add_table's options and target: an error, or DDL in which all names
 *		are quoted.
 *
 * The input: the name of a target (may be empty), FUZZ_SEP, options as JSON.
 * The table is fuzz_options, made by the command.
 *
 *-------------------------------------------------------------------------
 */

/* for parse_target(), which nobody else needs */
#include "../../src/functions/tables.c"

#include "access/table.h"
#include "fuzz.h"
#include "mb/pg_wchar.h"
#include "nodes/makefuncs.h"

static void
options_one(const char *data, int len)
{
	Relation	rel = table_openrv(makeRangeVar(NULL, "fuzz_options", -1), AccessShareLock);
	const char *p = data;
	MirrorSpec	spec;
	MirrorTable *table;
	char	   *target;
	char	   *options;
	char	   *ddl;
	char	  **names;
	int			n;

	memset(&spec, 0, sizeof(spec));
	spec.relid = RelationGetRelid(rel);
	target = fuzz_part(&p, data + len, &n);
	if (!fuzz_valid(GetDatabaseEncoding(), target, n))
		return;
	options = fuzz_part(&p, data + len, &n);
	if (!fuzz_valid(GetDatabaseEncoding(), options, n))
		return;
	if (*options)
		spec.options = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(options)));
	if (*target)
		parse_target(target, &spec.target_schema, &spec.target_table);
	table = mirror_resolve(rel, &spec);

	fuzz_must_not_throw();
	names = palloc(sizeof(char *) * (table->ncols + 2));
	for (n = 0; n < table->ncols; n++)
		names[n] = table->target.cols[n].name;
	names[n++] = table->target.schema;
	names[n++] = table->target.name;
	ddl = target_crate_ops.ddl(&table->target);
	fuzz_check_sql(ddl, names, n, NULL, 0);
	(void) target_sqlite_ops.ddl(&table->target);
}

const FuzzHarness fuzz_options = {"options", NULL, options_one, true, true};
