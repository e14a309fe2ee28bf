/*-------------------------------------------------------------------------
 *
 * tables.c
 *		What users ask for: tables to be mirrored, loaded anew, compared,
 *		paused; failed rows to be tried again or forgotten.
 *
 * All of it writes only the catalog and triggers; the worker, woken at
 * commit, does the rest.  Whoever calls has to own the table.  The catalog
 * belongs to the extension, so the writing is done as the bootstrap superuser
 * with a fixed search_path, by statements whose names and values are quoted
 * or passed as parameters.  Source tables are locked before the catalog.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/xact.h"
#include "base/point.h"
#include "base/session.h"
#include "base/settings.h"
#include "base/xact.h"
#include "capture/capture.h"
#include "capture/detached.h"
#include "capture/triggers.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/objectaddress.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/event_trigger.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "document/document.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "functions/tables.h"
#include "mirror/mirror.h"
#include "nodes/parsenodes.h"
#include "parser/scansup.h"
#include "queue/queue.h"
#include "shared/wake.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(crate_sync_add_table);
PG_FUNCTION_INFO_V1(crate_sync_remove_table);
PG_FUNCTION_INFO_V1(crate_sync_add_all_tables);
PG_FUNCTION_INFO_V1(crate_sync_follow_name);
PG_FUNCTION_INFO_V1(crate_sync_keep_table);
PG_FUNCTION_INFO_V1(crate_sync_alter_table);
PG_FUNCTION_INFO_V1(crate_sync_preview);
PG_FUNCTION_INFO_V1(crate_sync_get_target_ddl);
PG_FUNCTION_INFO_V1(crate_sync_resync);
PG_FUNCTION_INFO_V1(crate_sync_cancel);
PG_FUNCTION_INFO_V1(crate_sync_verify);
PG_FUNCTION_INFO_V1(crate_sync_pause);
PG_FUNCTION_INFO_V1(crate_sync_resume);
PG_FUNCTION_INFO_V1(crate_sync_retry_failed);
PG_FUNCTION_INFO_V1(crate_sync_discard_failed);
PG_FUNCTION_INFO_V1(crate_sync_before_drop);
PG_FUNCTION_INFO_V1(crate_sync_add_document);
PG_FUNCTION_INFO_V1(crate_sync_add_documents);
PG_FUNCTION_INFO_V1(crate_sync_remove_document);
PG_FUNCTION_INFO_V1(crate_sync_preview_document);
PG_FUNCTION_INFO_V1(crate_sync_get_document_query);

/* rows of crate_sync.failed read at a time */
#define FAILED_FETCH_ROWS 1000

/* the worker looks at the catalog again once this transaction has committed */
static void
tell_worker(void)
{
	Oid			relid = get_relname_relid("mirror", get_namespace_oid(CS_SCHEMA, false));

	if (OidIsValid(relid))
		CacheInvalidateRelcacheByRelid(relid);
	cs_wake_worker_at_commit();
}

static void
no_relation(Oid relid)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_TABLE),
			 errmsg("relation with OID %u does not exist", relid)));
}

static Relation
open_relation(Oid relid, LOCKMODE lockmode)
{
	Relation	rel = try_relation_open(relid, lockmode);

	if (rel == NULL)
		no_relation(relid);
	return rel;
}

static void
check_owner(Oid relid)
{
	if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relid)))
		no_relation(relid);
	if (!cs_table_owner_ok(relid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, get_relkind_objtype(get_rel_relkind(relid)),
					   get_rel_name(relid));
}

/*
 * Locks a table that the caller owns.  Ownership is looked at before, so that
 * nobody can lock what is not his, and after, since waiting takes time.
 */
static void
lock_owned(Oid relid, LOCKMODE lockmode)
{
	check_owner(relid);
	LockRelationOid(relid, lockmode);
	check_owner(relid);
}

static void
check_not_null(FunctionCallInfo fcinfo, int arg, const char *name)
{
	if (PG_ARGISNULL(arg))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", name)));
}

/* the spec of a mirrored table, or NULL; whoever may call, may know */
static MirrorSpec *
load_spec(Oid relid)
{
	Elevation	e;
	List	   *specs;

	elevate(&e);
	specs = mirror_load(relid);
	descend(&e);
	return specs == NIL ? NULL : linitial(specs);
}

/* may the caller decide about a mirror whose table is gone? */
static bool
may_act_for(const MirrorSpec *spec)
{
	return superuser() ||
		(OidIsValid(spec->source_owner) && has_privs_of_role(GetUserId(), spec->source_owner));
}

/* dropping: somebody wants its target table away */
static void
not_mirrored(Oid relid, bool dropping)
{
	Oid			root = InvalidOid;
	List	   *ancestors = NIL;
	ListCell   *lc;
	char		relkind = get_rel_relkind(relid);

	if (get_rel_relispartition(relid))
		ancestors = get_partition_ancestors(relid);
	foreach(lc, ancestors)
	{
		if (load_spec(lfirst_oid(lc)) != NULL)
			root = lfirst_oid(lc);
	}
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("table \"%s\" is not mirrored", get_rel_name(relid)),
			 OidIsValid(root) ?
			 errhint("It is a partition of \"%s\", which is mirrored as a whole.",
					 get_rel_name(root)) :
			 dropping ?
			 errhint("If its target table is still there, drop it there, e.g. by crate_sync.target_query('DROP TABLE ...').") :
			 relkind == RELKIND_RELATION || relkind == RELKIND_PARTITIONED_TABLE ?
			 errhint("SELECT crate_sync.add_table(%s);",
					 quote_literal_cstr(qualified_name(relid))) : 0));
}

/*
 * The mirrors that a function's argument means, List of MirrorSpec: those of
 * the table given, which the caller has to own, itself or as the root of
 * documents; or of all that he owns.
 */
static List *
chosen_specs(FunctionCallInfo fcinfo)
{
	Elevation	e;
	List	   *specs;
	List	   *owned = NIL;
	ListCell   *lc;

	if (!PG_ARGISNULL(0))
	{
		Oid			relid = PG_GETARG_OID(0);

		check_owner(relid);
		elevate(&e);
		specs = mirror_load(InvalidOid);
		descend(&e);
		foreach(lc, specs)
		{
			if (((MirrorSpec *) lfirst(lc))->relid == relid)
				owned = lappend(owned, lfirst(lc));
		}
		if (owned == NIL)
			not_mirrored(relid, false);
		return owned;
	}

	elevate(&e);
	specs = mirror_load(InvalidOid);
	descend(&e);
	foreach(lc, specs)
	{
		MirrorSpec *spec = lfirst(lc);

		if (SearchSysCacheExists1(RELOID, ObjectIdGetDatum(spec->relid)) &&
			cs_table_owner_ok(spec->relid, GetUserId()))
			owned = lappend(owned, spec);
	}
	return owned;
}

/* ---------------------------------------------------------------------------
 * Adding
 * ------------------------------------------------------------------------ */

static void
bad_target(const char *target)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_NAME),
			 errmsg("invalid target name: %s", quote_literal_cstr(target)),
			 errhint("Give 'table' or 'schema.table'; a part with upper case or special characters in double quotes.")));
}

/*
 * Splits 'schema.table' or 'table'; unquoted parts are lower-cased.  Not
 * textToQualifiedNameList, which cuts names at NAMEDATALEN: targets take more.
 */
static void
parse_target(const char *target, char **schema, char **table)
{
	const char *p = target;
	char	   *parts[2];
	int			n = 0;

	for (;;)
	{
		StringInfoData part;

		initStringInfo(&part);
		while (scanner_isspace(*p))
			p++;
		if (*p == '"')
		{
			for (p++;; p++)
			{
				if (*p == '\0')
					bad_target(target);
				if (*p == '"' && *++p != '"')
					break;
				appendStringInfoChar(&part, *p);
			}
		}
		else
		{
			const char *start = p;

			while (*p != '\0' && *p != '.' && *p != '"' && !scanner_isspace(*p))
				p++;
			appendStringInfoString(&part, downcase_identifier(start, p - start, false, false));
		}
		while (scanner_isspace(*p))
			p++;
		if (part.len == 0 || n == lengthof(parts) || (*p != '.' && *p != '\0'))
			bad_target(target);
		parts[n++] = part.data;
		if (*p++ == '\0')
			break;
	}
	*schema = n == 2 ? parts[0] : NULL;
	*table = parts[n - 1];
}

/* partitions are mirrored through their root or by themselves, not both */
static void
check_partition_tree(Relation rel)
{
	Oid			relid = RelationGetRelid(rel);
	List	   *others = NIL;
	ListCell   *lc;

	if (rel->rd_rel->relispartition)
	{
		others = get_partition_ancestors(relid);
		foreach(lc, others)
		{
			if (load_spec(lfirst_oid(lc)) != NULL)
				ereport(ERROR,
						(errcode(ERRCODE_DUPLICATE_OBJECT),
						 errmsg("\"%s\" is mirrored already, as a partition of \"%s\"",
								RelationGetRelationName(rel), get_rel_name(lfirst_oid(lc)))));
		}
	}
	if (rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
	{
		others = find_all_inheritors(relid, ShareRowExclusiveLock, NULL);
		foreach(lc, others)
		{
			if (lfirst_oid(lc) != relid && load_spec(lfirst_oid(lc)) != NULL)
				ereport(ERROR,
						(errcode(ERRCODE_DUPLICATE_OBJECT),
						 errmsg("partition \"%s\" of \"%s\" is mirrored already by itself",
								get_rel_name(lfirst_oid(lc)), RelationGetRelationName(rel)),
						 errhint("SELECT crate_sync.remove_table(%s);",
								 quote_literal_cstr(qualified_name(lfirst_oid(lc))))));
		}
	}
}

static Datum
name_array(List *names)
{
	Datum	   *elems = palloc(sizeof(Datum) * list_length(names));
	int			n = 0;
	ListCell   *lc;

	foreach(lc, names)
		elems[n++] = DirectFunctionCall1(namein, CStringGetDatum(lfirst(lc)));
	return PointerGetDatum(construct_array(elems, n, NAMEOID, NAMEDATALEN, false,
										   TYPALIGN_CHAR));
}

static Datum
oid_array(List *oids)
{
	Datum	   *elems = palloc(sizeof(Datum) * (list_length(oids) + 1));
	ListCell   *lc;

	foreach(lc, oids)
		elems[foreach_current_index(lc)] = ObjectIdGetDatum(lfirst_oid(lc));
	return PointerGetDatum(construct_array(elems, list_length(oids), OIDOID, sizeof(Oid), true, TYPALIGN_INT));
}

static char *
target_name(const char *schema, const char *table)
{
	return quote_qualified_identifier(schema, table);
}

/* the same as a statement at the target has it */
static char *
target_sql_name(const char *schema, const char *table)
{
	char	   *errmsg_;
	const TargetOps *ops = target_ops_for(cs_target_in_use(), &errmsg_);

	return ops != NULL && ops->sql_name != NULL ? ops->sql_name(schema, table) :
		target_name(schema, table);
}

/* was the mirrored table called so when it was added? */
static bool
has_name(const MirrorSpec *spec, const char *schema, const char *name)
{
	return spec->source_schema != NULL && spec->source_name != NULL &&
		strcmp(spec->source_schema, schema) == 0 && strcmp(spec->source_name, name) == 0;
}

/* the mirror that has this target table, or NULL */
static MirrorSpec *
spec_of_target(const TargetTable *target)
{
	List	   *specs = mirror_load(InvalidOid);
	ListCell   *lc;

	foreach(lc, specs)
	{
		MirrorSpec *spec = lfirst(lc);

		if (strcmp(spec->target_schema, target->schema) == 0 &&
			strcmp(spec->target_table, target->name) == 0)
			return spec;
	}
	return NULL;
}

static void
target_in_use(const MirrorTable *table, const MirrorSpec *other)
{
	char	   *target = target_name(table->target.schema, table->target.name);

	if (other == NULL || !SearchSysCacheExists1(RELOID, ObjectIdGetDatum(other->relid)))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("target table %s is in use", target),
				 other == NULL ? 0 :
				 errdetail("A table that has been dropped is mirrored there, and it was not yours."),
				 errhint("Choose another name with add_table's argument target.")));

	ereport(ERROR,
			(errcode(ERRCODE_DUPLICATE_OBJECT),
			 errmsg("target table %s is in use", target),
			 errdetail("%s is mirrored there.", qualified_name(other->relid)),
			 other->definition == NULL && table->doc == NULL && has_name(other, table->schemaname, table->relname) ?
			 errhint("That table was called as this one is now.  To have this one take its place: SELECT crate_sync.follow_name(%s); to mirror both, choose another name with add_table's argument target.",
					 quote_literal_cstr(qualified_name(table->relid))) :
			 table->doc == NULL ? errhint("Choose another name with add_table's argument target.") :
			 errhint("Choose another name with add_document's argument target.")));
}

/* the end of a mirror; its triggers are gone or go by themselves */
static void
delete_mirror(const MirrorSpec *spec, bool drop_target)
{
	Oid			types[] = {INT4OID, BOOLOID};
	Datum		values[] = {Int32GetDatum(spec->mirror_id), BoolGetDatum(drop_target)};

	SPI_connect();
	run_sql("DELETE FROM crate_sync.failed WHERE mirror_id = $1", 1, types, values, NULL);
	run_sql("DELETE FROM crate_sync.difference WHERE mirror_id = $1", 1, types, values, NULL);
	run_sql("INSERT INTO crate_sync.removal (target_schema, target_table, drop_target)"
			" SELECT target_schema, target_table, $2 FROM crate_sync.mirror WHERE mirror_id = $1",
			2, types, values, NULL);
	run_sql("DELETE FROM crate_sync.mirror WHERE mirror_id = $1", 1, types, values, NULL);
	SPI_finish();
	tell_worker();
}

/* false if the target table is somebody's already, or the relation mirrored */
static bool
insert_mirror(const MirrorTable *table, MirrorSpec *spec, bool copy_data)
{
	Oid			types[] = {OIDOID, TEXTOID, TEXTOID, NAMEARRAYOID, NAMEARRAYOID,
	TEXTOID, NAMEOID, JSONBOID, TEXTOID, NAMEOID, NAMEOID, OIDOID, TEXTOID, JSONBOID, OIDARRAYOID};
	Datum		values[15];
	char		nulls[16] = "               ";
	List	   *key = NIL;
	bool		done;

	for (int i = 0; i < table->nkeys; i++)
		key = lappend(key, table->columns[table->keys[i]].name);

	values[0] = ObjectIdGetDatum(table->relid);
	values[1] = CStringGetTextDatum(table->target.schema);
	values[2] = CStringGetTextDatum(table->target.name);
	values[3] = name_array(key);
	if (spec->columns != NIL)
		values[4] = name_array(spec->columns);
	else
		nulls[4] = 'n';
	if (table->row_filter != NULL)
		values[5] = CStringGetTextDatum(table->row_filter);
	else
		nulls[5] = 'n';
	if (spec->soft_delete_column != NULL)
		values[6] = DirectFunctionCall1(namein, CStringGetDatum(spec->soft_delete_column));
	else
		nulls[6] = 'n';
	if (spec->options != NULL)
		values[7] = JsonbPGetDatum(spec->options);
	else
		nulls[7] = 'n';
	values[8] = CStringGetTextDatum(copy_data ? "full" : "none");
	values[9] = DirectFunctionCall1(namein, CStringGetDatum(table->schemaname));
	values[10] = DirectFunctionCall1(namein, CStringGetDatum(table->relname));
	values[11] = ObjectIdGetDatum(table->owner);
	values[12] = CStringGetTextDatum(spec->follow_name ? "name" : "table");

	nulls[13] = nulls[14] = table->doc != NULL ? ' ' : 'n';
	if (table->doc != NULL)
	{
		values[13] = JsonbPGetDatum(document_canonical(table->doc));
		values[14] = oid_array(document_node_relids(table->doc));
	}

	SPI_connect();
	/* a row of mirror that came by a dump has none of mirror_state */
	done = run_sql("WITH m AS (INSERT INTO crate_sync.mirror (relid, target_schema, target_table, key_columns,"
			   " columns, row_filter, soft_delete_column, options, resync_no, resync_mode,"
			   " source_schema, source_name, source_owner, follow, definition, relations)"
			   " VALUES ($1, $2, $3, $4, $5, $6, $7, coalesce($8, '{}'), 1, $9, $10, $11, $12, $13, $14,"
			   " $15::pg_catalog.regclass[])"
			   " ON CONFLICT DO NOTHING RETURNING mirror_id)"
			   " INSERT INTO crate_sync.mirror_state (mirror_id, relid) SELECT mirror_id, $1 FROM m RETURNING mirror_id",
			   15, types, values, nulls) == 1;
	if (done)
	{
		bool		isnull;

		spec->mirror_id = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	}
	SPI_finish();
	return done;
}

/*
 * Adds a table; *added tells whether it is new.  Returns the target's name in
 * the current memory context.
 */
static char *
add_table(MirrorSpec *spec, bool copy_data, bool if_not_exists, bool *added)
{
	Relation	rel;
	MirrorSpec *old;
	MirrorSpec *other;
	MirrorTable *table;
	List	   *key = NIL;
	bool		gone;
	Elevation	e;

	*added = false;
	lock_owned(spec->relid, ShareRowExclusiveLock);
	rel = relation_open(spec->relid, NoLock);

	old = load_spec(spec->relid);
	if (old != NULL)
	{
		char	   *name = target_sql_name(old->target_schema, old->target_table);

		ereport(if_not_exists ? NOTICE : ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("table \"%s\" is mirrored already as %s%s",
						RelationGetRelationName(rel), name, if_not_exists ? ", skipping" : "")));
		relation_close(rel, NoLock);
		return name;
	}

	table = mirror_resolve(rel, spec);
	check_partition_tree(rel);
	for (int i = 0; i < table->nkeys; i++)
		key = lappend(key, table->columns[table->keys[i]].name);
	relation_close(rel, NoLock);

	elevate(&e);
	/* where a table was mirrored that is no more, as the worker will notice soon */
	other = spec_of_target(&table->target);
	gone = other != NULL && !SearchSysCacheExists1(RELOID, ObjectIdGetDatum(other->relid));
	descend(&e);
	gone = gone && may_act_for(other);

	elevate(&e);
	if (gone)
		delete_mirror(other, false);
	if (!insert_mirror(table, spec, copy_data))
		target_in_use(table, spec_of_target(&table->target));
	detached_remove_all(spec->relid);
	triggers_ensure(spec->relid, key, true);
	tell_worker();
	descend(&e);

	*added = true;
	return target_sql_name(table->target.schema, table->target.name);
}

/* adding works without target and worker, but the user should know */
static void
warn_if_idle(void)
{
	if (cs_target_in_use()[0] == '\0')
		ereport(WARNING,
				(errmsg("crate_sync.target is not set: changes are queued, nothing is pushed yet"),
				 errhint("%s", cs_target_hint())));
	else if (!cs_worker_is_running())
		ereport(WARNING,
				(errmsg("no crate_sync worker is running in this database: changes are queued, nothing is pushed yet"),
				 errhint("SELECT crate_sync.start();")));
	else if (cs_worker_trouble() != NULL)
		ereport(WARNING,
				(errmsg("%s", cs_worker_trouble()),
				 errdetail("Changes are queued; the load starts when it answers."),
				 errhint("See crate_sync.status.")));
}

/* columns, soft_delete_column and options, as several functions take them */
static void
spec_from_args(FunctionCallInfo fcinfo, int columns, int soft_delete, int options,
			   MirrorSpec *spec)
{
	if (!PG_ARGISNULL(columns))
	{
		spec->columns = mirror_name_list(PG_GETARG_ARRAYTYPE_P(columns));
		if (spec->columns == NIL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("the list of columns is empty"),
					 errhint("Leave it out to mirror all columns.")));
	}
	if (!PG_ARGISNULL(soft_delete))
		spec->soft_delete_column = pstrdup(NameStr(*PG_GETARG_NAME(soft_delete)));
	if (!PG_ARGISNULL(options))
		spec->options = PG_GETARG_JSONB_P(options);
}

static bool
follow_from_arg(const char *follow)
{
	if (strcmp(follow, "name") != 0 && strcmp(follow, "table") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("follow must be 'table' or 'name', not %s", quote_literal_cstr(follow)),
				 errdetail("After a RENAME the table itself goes on to be mirrored, or whatever table has its name then.")));
	return strcmp(follow, "name") == 0;
}

Datum
crate_sync_add_table(PG_FUNCTION_ARGS)
{
	MirrorSpec	spec;
	char	   *name;
	bool		added;

	/* the first version's function has an argument less */
	mirror_check_catalog();
	check_not_null(fcinfo, 0, "relation");
	memset(&spec, 0, sizeof(spec));
	spec.relid = PG_GETARG_OID(0);
	if (!PG_ARGISNULL(8))
		spec.follow_name = follow_from_arg(text_to_cstring(PG_GETARG_TEXT_PP(8)));
	if (!PG_ARGISNULL(1))
		parse_target(text_to_cstring(PG_GETARG_TEXT_PP(1)), &spec.target_schema,
					 &spec.target_table);
	spec_from_args(fcinfo, 2, 4, 5, &spec);
	if (!PG_ARGISNULL(3))
		spec.row_filter = text_to_cstring(PG_GETARG_TEXT_PP(3));

	name = add_table(&spec, PG_ARGISNULL(6) || PG_GETARG_BOOL(6),
					 !PG_ARGISNULL(7) && PG_GETARG_BOOL(7), &added);
	if (added)
		warn_if_idle();
	PG_RETURN_TEXT_P(cstring_to_text(name));
}

/* tables of the schemas that could be mirrored, by name */
static List *
tables_of_schemas(Datum schemas)
{
	MemoryContext cxt = CurrentMemoryContext;
	Oid			types[] = {NAMEARRAYOID};
	List	   *relids = NIL;
	Elevation	e;

	elevate(&e);
	SPI_connect();
	run_sql("SELECT c.oid FROM pg_catalog.pg_class c"
			" JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
			" WHERE n.nspname = ANY ($1) AND c.relkind IN ('r', 'p') AND NOT c.relispartition"
			" ORDER BY n.nspname, c.relname", 1, types, &schemas, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		Datum		d = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);
		MemoryContext old = MemoryContextSwitchTo(cxt);

		relids = lappend_oid(relids, DatumGetObjectId(d));
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	descend(&e);
	return relids;
}

/* adds one of several; an error is caught and becomes its message */
static char *
try_to_add(char *(*add) (void *arg, bool *added), void *arg, bool *added)
{
	MemoryContext cxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	char	   *volatile message = NULL;
	volatile bool done = false;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(cxt);
	PG_TRY();
	{
		bool		is_new;

		message = add(arg, &is_new);
		ReleaseCurrentSubTransaction();
		done = true;
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(cxt);
		edata = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(cxt);
		CurrentResourceOwner = owner;

		/* what stops the session, or the whole call, is not this table's */
		if (edata->sqlerrcode == ERRCODE_QUERY_CANCELED ||
			edata->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN ||
			edata->sqlerrcode == ERRCODE_OUT_OF_MEMORY)
			ReThrowError(edata);
		message = psprintf("%s%s%s%s%s", edata->message,
						   edata->detail ? ". " : "", edata->detail ? edata->detail : "",
						   edata->hint ? (edata->detail ? " " : ". ") : "",
						   edata->hint ? edata->hint : "");
	}
	PG_END_TRY();
	MemoryContextSwitchTo(cxt);
	CurrentResourceOwner = owner;

	*added = done;
	return message;
}

static char *
add_plain_table(void *arg, bool *added)
{
	MirrorSpec	spec;

	memset(&spec, 0, sizeof(spec));
	spec.relid = *(Oid *) arg;
	return add_table(&spec, true, false, added);
}

Datum
crate_sync_add_all_tables(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	List	   *names;
	List	   *relids;
	ListCell   *lc;
	bool		any = false;

	check_not_null(fcinfo, 0, "schema_names");
	names = mirror_name_list(PG_GETARG_ARRAYTYPE_P(0));
	foreach(lc, names)
		(void) get_namespace_oid(lfirst(lc), false);

	InitMaterializedSRF(fcinfo, 0);
	relids = tables_of_schemas(PG_GETARG_DATUM(0));
	foreach(lc, relids)
	{
		Datum		values[3];
		bool		nulls[3] = {false, false, false};
		bool		added;
		char	   *message = try_to_add(add_plain_table, &lfirst_oid(lc), &added);

		values[0] = ObjectIdGetDatum(lfirst_oid(lc));
		values[1] = BoolGetDatum(added);
		values[2] = CStringGetTextDatum(message);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
		any |= added;
	}
	if (any)
		warn_if_idle();
	return (Datum) 0;
}

/* ---------------------------------------------------------------------------
 * Removing
 * ------------------------------------------------------------------------ */

Datum
crate_sync_remove_table(PG_FUNCTION_ARGS)
{
	Oid			relid;
	bool		drop_target = !PG_ARGISNULL(1) && PG_GETARG_BOOL(1);
	bool		if_exists = !PG_ARGISNULL(2) && PG_GETARG_BOOL(2);
	bool		there;
	MirrorSpec *spec;
	Elevation	e;

	check_not_null(fcinfo, 0, "relation");
	relid = PG_GETARG_OID(0);

	there = SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relid));
	if (there)
	{
		check_owner(relid);
		if (load_spec(relid) != NULL)
			lock_owned(relid, AccessExclusiveLock);
	}

	/* a table that was dropped has no owner any more, but it had one */
	spec = load_spec(relid);
	if (!there && (spec == NULL ? !superuser() : !may_act_for(spec)))
		check_owner(relid);
	if (spec == NULL)
	{
		if (!if_exists && there)
			not_mirrored(relid, drop_target);
		if (!if_exists)
			check_owner(relid);
		ereport(NOTICE,
				(errmsg("table \"%s\" is not mirrored, skipping",
						there ? get_rel_name(relid) : psprintf("%u", relid))));
		PG_RETURN_BOOL(false);
	}

	elevate(&e);
	if (there)
		triggers_drop(relid);
	delete_mirror(spec, drop_target);
	descend(&e);
	PG_RETURN_BOOL(true);
}

/* ---------------------------------------------------------------------------
 * A name that another table has now
 * ------------------------------------------------------------------------ */

static bool
not_to_be_had(const MirrorSpec *spec, bool wait)
{
	if (wait)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("the tables were changed by somebody else at the same time"),
				 errhint("Try again.")));
	return false;
}

bool
attach_follow(MirrorSpec *spec, Oid relid, bool wait)
{
	Oid			old = spec->relid;
	HeapTuple	tup = SearchSysCache1(RELOID, ObjectIdGetDatum(old));
	bool		wait_old = false;
	bool		have_old = false;
	List	   *tree;
	Relation	rel;
	MirrorTable *table;
	List	   *key = NIL;
	Oid			types[] = {INT4OID, OIDOID, OIDOID, OIDOID};
	Datum		values[4];
	ListCell   *lc;

	if (HeapTupleIsValid(tup))
	{
		/* whose it was is asked to let go of it; others' tables are in nobody's way */
		wait_old = wait && ((Form_pg_class) GETSTRUCT(tup))->relowner == spec->source_owner;
		have_old = true;
		ReleaseSysCache(tup);
	}

	/* both by their OIDs, so that two who do this do not wait for each other */
	for (int i = 0; i < 2; i++)
	{
		if ((old < relid) == (i == 0))
			have_old = have_old &&
				triggers_lock(list_make1_oid(old), AccessExclusiveLock, wait_old) &&
				triggers_lock(find_all_inheritors(old, NoLock, NULL), AccessExclusiveLock, wait_old);
		else if (!triggers_lock(list_make1_oid(relid), ShareRowExclusiveLock, wait))
			return false;
	}
	rel = try_relation_open(relid, NoLock);
	if (rel == NULL)
		return not_to_be_had(spec, wait);
	if (!has_name(spec, get_namespace_name(RelationGetNamespace(rel)), RelationGetRelationName(rel)))
	{
		relation_close(rel, NoLock);
		return not_to_be_had(spec, wait);
	}

	tree = find_all_inheritors(relid, NoLock, NULL);
	if ((list_member_oid(tree, old) && !have_old) || !triggers_lock(tree, ShareRowExclusiveLock, wait))
	{
		relation_close(rel, NoLock);
		return not_to_be_had(spec, wait);
	}

	table = mirror_resolve(rel, spec);
	foreach(lc, spec->columns)
	{
		if (get_attnum(relid, lfirst(lc)) == InvalidAttrNumber)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("table \"%s\" has no column \"%s\", which is mirrored",
							RelationGetRelationName(rel), (char *) lfirst(lc))));
	}
	for (int i = 0; i < table->nkeys; i++)
		key = lappend(key, table->columns[table->keys[i]].name);

	values[0] = Int32GetDatum(spec->mirror_id);
	values[1] = ObjectIdGetDatum(old);
	values[2] = ObjectIdGetDatum(relid);
	values[3] = ObjectIdGetDatum(table->owner);
	SPI_connect();
	if (run_sql("UPDATE crate_sync.mirror SET relid = $3, source_owner = $4, resync_no = resync_no + 1,"
				" resync_mode = 'full', resync_filter = NULL WHERE mirror_id = $1 AND relid = $2",
				4, types, values, NULL) != 1)
		{
		SPI_finish();
		relation_close(rel, NoLock);
		return not_to_be_had(spec, wait);
	}
	SPI_finish();

	/* a partition that was mirrored by itself has triggers of its own */
	if (have_old)
		triggers_drop(old);
	check_partition_tree(rel);
	relation_close(rel, NoLock);
	detached_remove_all(relid);
	triggers_ensure(relid, key, wait);
	tell_worker();
	return true;
}

/*
 * The mirror of another table that was called as this one is now.  The caller
 * has to be the one who decides about it.
 */
static MirrorSpec *
spec_by_name(Oid relid)
{
	char	   *schema = get_namespace_name(get_rel_namespace(relid));
	char	   *name = get_rel_name(relid);
	MirrorSpec *found = NULL;
	List	   *specs;
	ListCell   *lc;
	Elevation	e;

	elevate(&e);
	specs = mirror_load(InvalidOid);
	descend(&e);
	foreach(lc, specs)
	{
		MirrorSpec *spec = lfirst(lc);

		if (spec->relid == relid || schema == NULL || name == NULL ||
			!has_name(spec, schema, name))
			continue;
		if (found != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_AMBIGUOUS_ALIAS),
					 errmsg("more than one mirrored table was called \"%s\"", name),
					 errdetail("Among them those that are mirrored as %s and %s.",
							   target_name(found->target_schema, found->target_table),
							   target_name(spec->target_schema, spec->target_table)),
					 errhint("Say which of them go on as they are called now: SELECT crate_sync.keep_table(...);")));
		found = spec;
	}
	if (found == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("no other mirrored table was called \"%s\" when it was added", name),
				 errhint("SELECT crate_sync.add_table(%s);", quote_literal_cstr(qualified_name(relid)))));

	if (SearchSysCacheExists1(RELOID, ObjectIdGetDatum(found->relid)))
		check_owner(found->relid);
	else if (!may_act_for(found))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("the table that was called \"%s\" before was not yours", name)));
	return found;
}

Datum
crate_sync_follow_name(PG_FUNCTION_ARGS)
{
	Oid			relid;
	MirrorSpec *spec;
	char	   *before = NULL;
	Elevation	e;

	check_not_null(fcinfo, 0, "relation");
	relid = PG_GETARG_OID(0);
	check_owner(relid);
	spec = load_spec(relid);
	if (spec != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("table \"%s\" is mirrored already as %s", get_rel_name(relid),
						target_name(spec->target_schema, spec->target_table)),
				 errhint("To have it take another one's place: SELECT crate_sync.remove_table(%s); first.",
						 quote_literal_cstr(qualified_name(relid)))));
	spec = spec_by_name(relid);
	if (SearchSysCacheExists1(RELOID, ObjectIdGetDatum(spec->relid)))
		before = qualified_name(spec->relid);

	elevate(&e);
	(void) attach_follow(spec, relid, true);
	descend(&e);
	/* locks take time */
	check_owner(relid);
	if (SearchSysCacheExists1(RELOID, ObjectIdGetDatum(spec->relid)))
		check_owner(spec->relid);
	PG_RETURN_TEXT_P(cstring_to_text(psprintf("%s is loaded anew from %s, which takes the place of %s",
											  target_name(spec->target_schema, spec->target_table),
											  qualified_name(relid),
											  before != NULL ? before : "a table that was dropped")));
}

Datum
crate_sync_keep_table(PG_FUNCTION_ARGS)
{
	Oid			types[] = {INT4OID, NAMEOID, NAMEOID, OIDOID};
	Datum		values[4];
	Oid			relid;
	Relation	rel;
	MirrorSpec *spec;
	char	   *schema;
	bool		same;
	Elevation	e;

	check_not_null(fcinfo, 0, "relation");
	relid = PG_GETARG_OID(0);
	lock_owned(relid, AccessShareLock);
	spec = load_spec(relid);
	if (spec == NULL)
		not_mirrored(relid, false);

	rel = relation_open(relid, NoLock);
	schema = get_namespace_name(RelationGetNamespace(rel));
	same = has_name(spec, schema, RelationGetRelationName(rel));
	values[0] = Int32GetDatum(spec->mirror_id);
	values[1] = DirectFunctionCall1(namein, CStringGetDatum(schema));
	values[2] = DirectFunctionCall1(namein, CStringGetDatum(RelationGetRelationName(rel)));
	values[3] = ObjectIdGetDatum(rel->rd_rel->relowner);
	relation_close(rel, NoLock);

	elevate(&e);
	SPI_connect();
	run_sql("UPDATE crate_sync.mirror SET source_schema = $2, source_name = $3, source_owner = $4"
			" WHERE mirror_id = $1", 4, types, values, NULL);
	SPI_finish();
	tell_worker();
	descend(&e);
	PG_RETURN_TEXT_P(cstring_to_text(psprintf(same ? "%s is mirrored as %s, by the name that it has" :
											  "%s goes on to be mirrored as %s",
											  qualified_name(relid),
											  target_name(spec->target_schema, spec->target_table))));
}

/* ---------------------------------------------------------------------------
 * Changing what is asked for a table
 * ------------------------------------------------------------------------ */

/* options with others over them, of which null takes one away */
static Jsonb *
merge_options(Jsonb *options, Jsonb *changes)
{
	JsonbIterator *it;
	JsonbValue	v;
	JsonbIteratorToken tok;
	Datum		merged = JsonbPGetDatum(changes);

	if (!JB_ROOT_IS_OBJECT(changes))
		return changes;			/* which mirror_resolve() refuses */
	if (options != NULL)
		merged = DirectFunctionCall2(jsonb_concat, JsonbPGetDatum(options), merged);
	it = JsonbIteratorInit(&changes->root);
	while ((tok = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		text	   *key;

		if (tok != WJB_KEY)
			continue;
		key = cstring_to_text_with_len(v.val.string.val, v.val.string.len);
		if (JsonbIteratorNext(&it, &v, true) == WJB_VALUE && v.type == jbvNull)
			merged = DirectFunctionCall2(jsonb_delete, merged, PointerGetDatum(key));
	}
	return DatumGetJsonbP(merged);
}

/* the definition as it is stored, or NULL if the table has none any more */
static MirrorTable *
resolve_stored(Relation rel, MirrorSpec *spec)
{
	MemoryContext cxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	MirrorTable *volatile table = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(cxt);
	PG_TRY();
	{
		table = mirror_resolve(rel, spec);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(cxt);
		edata = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(cxt);
		CurrentResourceOwner = owner;
		if (edata->sqlerrcode == ERRCODE_QUERY_CANCELED ||
			edata->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN ||
			edata->sqlerrcode == ERRCODE_OUT_OF_MEMORY)
			ReThrowError(edata);
		FreeErrorData(edata);
		table = NULL;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(cxt);
	CurrentResourceOwner = owner;
	return table;
}

static const TargetColumn *
target_column(const TargetTable *table, const char *name)
{
	for (int i = 0; i < table->ncols; i++)
	{
		if (strcmp(table->cols[i].name, name) == 0)
			return &table->cols[i];
	}
	return NULL;
}

static bool
same_text(const char *a, const char *b)
{
	return a == NULL || b == NULL ? a == b : strcmp(a, b) == 0;
}

/*
 * What keeps a target table from becoming another one by itself, palloc'd;
 * NULL: nothing, columns can be added.
 */
static char *
needs_rebuild(const TargetTable *from, const TargetTable *to)
{
	bool		same_key = from->nkeys == to->nkeys;

	for (int i = 0; i < from->nkeys && same_key; i++)
		same_key = strcmp(from->cols[from->keys[i]].name, to->cols[to->keys[i]].name) == 0;
	if (!same_key)
		return pstrdup("The key has other names in the target.");
	for (int i = 0; i < to->ncols; i++)
	{
		const TargetColumn *col = &to->cols[i];
		const TargetColumn *old = target_column(from, col->name);

		if (old != NULL && !(same_text(old->type, col->type) && same_text(old->storage, col->storage)))
			return psprintf("Column \"%s\" is %s%s%s in the target, and would be %s%s%s.", col->name,
							old->type, old->storage ? " " : "", old->storage ? old->storage : "",
							col->type, col->storage ? " " : "", col->storage ? col->storage : "");
	}
	if (!same_text(from->ddl_clustered, to->ddl_clustered) ||
		!same_text(from->ddl_partitioned, to->ddl_partitioned) || !same_text(from->ddl_with, to->ddl_with))
		return pstrdup("Shards, replicas, partitions and the like are what a table was made with.");
	return NULL;
}

/* a column that is written no more keeps what it had */
static void
note_left_columns(const TargetTable *from, const TargetTable *to)
{
	for (int i = 0; i < from->ncols; i++)
	{
		if (target_column(to, from->cols[i].name) == NULL)
			ereport(NOTICE,
					(errmsg("column \"%s\" of %s stays in the target as it is, and is written no more",
							from->cols[i].name, from->qualified),
					 errhint("With rebuild => true the target table is made anew without it.")));
	}
}

static bool
same_definition(const MirrorTable *a, const MirrorTable *b)
{
	if (a->ncols != b->ncols || a->soft_delete_attnum != b->soft_delete_attnum ||
		!same_text(a->row_filter, b->row_filter) || needs_rebuild(&a->target, &b->target) != NULL)
		return false;
	for (int i = 0; i < a->ncols; i++)
	{
		if (a->columns[i].attnum != b->columns[i].attnum ||
			strcmp(a->target.cols[i].name, b->target.cols[i].name) != 0)
			return false;
	}
	return true;
}

/* names as they are asked for: all columns, or these */
static bool
same_names(List *a, List *b)
{
	ListCell   *la;
	ListCell   *lb;

	if (list_length(a) != list_length(b))
		return false;
	forboth(la, a, lb, b)
	{
		if (strcmp(lfirst(la), lfirst(lb)) != 0)
			return false;
	}
	return true;
}

static void
update_mirror(const MirrorSpec *spec, const MirrorTable *table, const char *mode)
{
	Oid			types[] = {INT4OID, NAMEARRAYOID, TEXTOID, NAMEOID, JSONBOID, TEXTOID};
	Datum		values[6];
	char		nulls[7] = "      ";

	values[0] = Int32GetDatum(spec->mirror_id);
	if (spec->columns != NIL)
		values[1] = name_array(spec->columns);
	else
		nulls[1] = 'n';
	if (table->row_filter != NULL)
		values[2] = CStringGetTextDatum(table->row_filter);
	else
		nulls[2] = 'n';
	if (spec->soft_delete_column != NULL)
		values[3] = DirectFunctionCall1(namein, CStringGetDatum(spec->soft_delete_column));
	else
		nulls[3] = 'n';
	if (spec->options != NULL)
		values[4] = JsonbPGetDatum(spec->options);
	else
		nulls[4] = 'n';
	values[5] = CStringGetTextDatum(mode);
	SPI_connect();
	run_sql("UPDATE crate_sync.mirror SET columns = $2, row_filter = $3, soft_delete_column = $4,"
			" options = coalesce($5, '{}'), resync_no = resync_no + 1, resync_mode = $6, resync_filter = NULL"
			" WHERE mirror_id = $1", 6, types, values, nulls);
	SPI_finish();
}

/*
 * An argument that is NULL leaves things as they are; an empty one takes back
 * what was asked for.  Rows that were read under the former definition may
 * still be on their way: the load that is asked for here goes over them.
 */
Datum
crate_sync_alter_table(PG_FUNCTION_ARGS)
{
	bool		rebuild = !PG_ARGISNULL(5) && PG_GETARG_BOOL(5);
	MirrorSpec *stored;
	MirrorSpec	spec;
	MirrorTable *before;
	MirrorTable *table;
	Relation	rel;
	char	   *why;
	char	   *name;
	Elevation	e;

	mirror_check_catalog();
	check_not_null(fcinfo, 0, "relation");
	/* of two who do this, one after the other; writers go on */
	lock_owned(PG_GETARG_OID(0), ShareUpdateExclusiveLock);
	stored = load_spec(PG_GETARG_OID(0));
	if (stored == NULL)
		not_mirrored(PG_GETARG_OID(0), false);

	spec = *stored;
	if (!PG_ARGISNULL(1))
		spec.columns = mirror_name_list(PG_GETARG_ARRAYTYPE_P(1));
	if (!PG_ARGISNULL(2))
	{
		spec.row_filter = text_to_cstring(PG_GETARG_TEXT_PP(2));
		if (spec.row_filter[0] == '\0')
			spec.row_filter = NULL;
	}
	if (!PG_ARGISNULL(3))
	{
		spec.soft_delete_column = pstrdup(NameStr(*PG_GETARG_NAME(3)));
		if (spec.soft_delete_column[0] == '\0')
			spec.soft_delete_column = NULL;
	}
	if (!PG_ARGISNULL(4))
		spec.options = merge_options(stored->options, PG_GETARG_JSONB_P(4));

	rel = relation_open(spec.relid, NoLock);
	before = resolve_stored(rel, stored);
	spec.mirror_id = 0;			/* checked like one that is new */
	table = mirror_resolve(rel, &spec);
	spec.mirror_id = stored->mirror_id;
	relation_close(rel, NoLock);
	name = target_name(table->target.schema, table->target.name);

	if (before != NULL && !rebuild && same_definition(before, table) && same_names(stored->columns, spec.columns))
		PG_RETURN_TEXT_P(cstring_to_text(psprintf("%s is as it was asked for", name)));
	why = before ? needs_rebuild(&before->target, &table->target) : NULL;
	if (why != NULL && !rebuild)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("target table %s has to be made anew for that", name),
				 errdetail_internal("%s", why),
				 errhint("Call it with rebuild => true: a new table is loaded beside this one and takes its place when it is complete.")));
	if (before != NULL && !rebuild)
		note_left_columns(&before->target, &table->target);

	elevate(&e);
	update_mirror(&spec, table, rebuild ? "rebuild" : "full");
	tell_worker();
	descend(&e);
	warn_if_idle();
	PG_RETURN_TEXT_P(cstring_to_text(psprintf(rebuild ? "%s is made anew and loaded" : "%s is resynced", name)));
}

/* ---------------------------------------------------------------------------
 * Looking before anything is touched
 * ------------------------------------------------------------------------ */

static void
append_note(StringInfo note, const char *text)
{
	if (text != NULL)
		appendStringInfo(note, "%s%s", note->len > 0 ? "; " : "", text);
}

Datum
crate_sync_preview(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	MirrorSpec	args;
	MirrorSpec *spec = &args;
	MirrorTable *table;
	Relation	rel;

	check_not_null(fcinfo, 0, "relation");
	memset(&args, 0, sizeof(args));
	args.relid = PG_GETARG_OID(0);
	spec_from_args(fcinfo, 1, 2, 3, &args);

	rel = open_relation(args.relid, AccessShareLock);
	if (args.columns == NIL && args.soft_delete_column == NULL && args.options == NULL)
	{
		/* of a table that is mirrored: how it is */
		MirrorSpec *stored = load_spec(args.relid);

		if (stored != NULL)
			spec = stored;
	}
	table = mirror_resolve(rel, spec);
	relation_close(rel, AccessShareLock);

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < table->ncols; i++)
	{
		const MirrorColumn *col = &table->columns[i];
		const TargetColumn *tcol = &table->target.cols[i];
		Datum		values[6];
		bool		nulls[6] = {false};
		StringInfoData note;

		initStringInfo(&note);
		append_note(&note, col->map.loses);
		if (col->attnum == table->soft_delete_attnum)
			append_note(&note, "a row marked here is deleted in the target");

		values[0] = DirectFunctionCall1(namein, CStringGetDatum(col->name));
		values[1] = CStringGetTextDatum(format_type_with_typemod(col->typid, col->typmod));
		values[2] = CStringGetTextDatum(tcol->name);
		values[3] = CStringGetTextDatum(tcol->storage == NULL ? tcol->type :
										psprintf("%s %s", tcol->type, tcol->storage));
		values[4] = BoolGetDatum(tcol->key);
		values[5] = CStringGetTextDatum(note.data);
		nulls[5] = note.len == 0;
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

Datum
crate_sync_get_target_ddl(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	Relation	rel = open_relation(relid, AccessShareLock);
	MirrorSpec *spec = load_spec(relid);
	MirrorSpec	plain;
	MirrorTable *table;
	const TargetOps *ops;
	char	   *errmsg = NULL;

	if (spec == NULL)
	{
		memset(&plain, 0, sizeof(plain));
		plain.relid = relid;
		spec = &plain;
	}
	table = mirror_resolve(rel, spec);
	relation_close(rel, AccessShareLock);

	ops = target_ops_for(cs_target, &errmsg);
	if (ops == NULL)
		ops = &target_crate_ops;
	PG_RETURN_TEXT_P(cstring_to_text(ops->ddl(&table->target)));
}

/* ---------------------------------------------------------------------------
 * Asking the worker for something
 * ------------------------------------------------------------------------ */

/*
 * Runs an UPDATE of crate_sync.mirror for each of some tables, with $1 its
 * mirror_id, $2 a value, $3 a text or NULL.  Returns how many rows that were.
 */
static int
update_mirrors(List *specs, const char *sql, Oid type2, Datum value2, const char *text3)
{
	Oid			types[] = {INT4OID, type2, TEXTOID};
	Datum		values[] = {(Datum) 0, value2, (Datum) 0};
	char		nulls[] = "   ";
	int			n = 0;
	Elevation	e;
	ListCell   *lc;

	if (text3 != NULL)
		values[2] = CStringGetTextDatum(text3);
	else
		nulls[2] = 'n';

	elevate(&e);
	SPI_connect();
	foreach(lc, specs)
	{
		values[0] = Int32GetDatum(((MirrorSpec *) lfirst(lc))->mirror_id);
		n += run_sql(sql, 3, types, values, nulls);
	}
	SPI_finish();
	if (n > 0)
		tell_worker();
	descend(&e);
	return n;
}

Datum
crate_sync_resync(PG_FUNCTION_ARGS)
{
	static const char *const modes[] = {"full", "upsert", "rebuild"};
	char	   *mode;
	char	   *filter = NULL;
	bool		valid = false;
	List	   *specs;

	check_not_null(fcinfo, 1, "mode");
	mode = text_to_cstring(PG_GETARG_TEXT_PP(1));
	for (int i = 0; i < lengthof(modes); i++)
		valid |= strcmp(mode, modes[i]) == 0;
	if (!valid)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown resync mode \"%s\"", mode),
				 errhint("Valid modes are: full, upsert, rebuild.")));
	if (!PG_ARGISNULL(2))
	{
		if (PG_ARGISNULL(0))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("row_filter needs a relation")));
		if (strcmp(mode, "upsert") != 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("row_filter cannot be used with mode \"%s\"", mode),
					 errhint("A part of the rows can be pushed with mode => 'upsert'.")));
	}

	specs = chosen_specs(fcinfo);
	if (!PG_ARGISNULL(2))
	{
		Relation	rel = open_relation(PG_GETARG_OID(0), AccessShareLock);

		filter = mirror_check_filter(rel, text_to_cstring(PG_GETARG_TEXT_PP(2)), false, NULL);
		relation_close(rel, AccessShareLock);
	}
	/* more than this upsert may have been asked for a moment ago, and not be begun yet */
	PG_RETURN_INT32(update_mirrors(specs,
								   "UPDATE crate_sync.mirror m SET resync_no = resync_no + 1,"
								   " resync_mode = CASE WHEN p.more THEN resync_mode ELSE $2 END,"
								   " resync_filter = CASE WHEN NOT p.more THEN $3 END"
								   " FROM (SELECT i.mirror_id, $2 = 'upsert' AND i.resync_mode <> 'none' AND i.resync_mode <> 'cancel'"
								   " AND NOT EXISTS (SELECT FROM crate_sync.mirror_state s"
								   " WHERE s.mirror_id = i.mirror_id AND s.resync_done >= i.resync_no) AS more"
								   " FROM crate_sync.mirror i WHERE i.mirror_id = $1) AS p"
								   " WHERE m.mirror_id = p.mirror_id",
								   TEXTOID, CStringGetTextDatum(mode), filter));
}

Datum
crate_sync_cancel(PG_FUNCTION_ARGS)
{
	/* false if nothing was asked for that the worker has not done */
	PG_RETURN_BOOL(update_mirrors(chosen_specs(fcinfo),
								  "UPDATE crate_sync.mirror m SET resync_no = resync_no + 1,"
								  " resync_mode = $2, resync_filter = NULL WHERE mirror_id = $1"
								  " AND NOT EXISTS (SELECT FROM crate_sync.mirror_state s"
								  " WHERE s.mirror_id = m.mirror_id AND s.load_phase IS NULL"
								  " AND s.resync_done >= m.resync_no"
								  " AND s.verify_done >= m.verify_no)",
								  TEXTOID, CStringGetTextDatum("cancel"), NULL) > 0);
}

Datum
crate_sync_verify(PG_FUNCTION_ARGS)
{
	bool		repair = !PG_ARGISNULL(1) && PG_GETARG_BOOL(1);

	PG_RETURN_INT32(update_mirrors(chosen_specs(fcinfo),
								   "UPDATE crate_sync.mirror SET verify_no = verify_no + 1,"
								   " verify_repair = $2 WHERE mirror_id = $1",
								   BOOLOID, BoolGetDatum(repair), NULL));
}

static int
set_paused(FunctionCallInfo fcinfo, bool paused)
{
	return update_mirrors(chosen_specs(fcinfo),
						  "UPDATE crate_sync.mirror SET paused = $2"
						  " WHERE mirror_id = $1 AND paused <> $2",
						  BOOLOID, BoolGetDatum(paused), NULL);
}

/* both return how many tables were not in that state before */
Datum
crate_sync_pause(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(set_paused(fcinfo, true));
}

Datum
crate_sync_resume(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(set_paused(fcinfo, false));
}

/* ---------------------------------------------------------------------------
 * Failed rows
 * ------------------------------------------------------------------------ */

/* the tables whose failed rows are meant; a failed_id by itself names one too */
static List *
failed_specs(FunctionCallInfo fcinfo)
{
	Oid			types[] = {INT8OID};
	Datum		values[1];
	Elevation	e;
	Oid			relid = InvalidOid;
	int			mirror_id = 0;
	MirrorSpec *spec;

	if (!PG_ARGISNULL(0) || PG_ARGISNULL(1))
		return chosen_specs(fcinfo);

	values[0] = PG_GETARG_DATUM(1);
	elevate(&e);
	SPI_connect();
	run_sql("SELECT m.relid::pg_catalog.oid, m.mirror_id FROM crate_sync.failed f"
		" JOIN crate_sync.mirror m ON m.mirror_id = f.mirror_id WHERE f.failed_id = $1",
		1, types, values, NULL);
	if (SPI_processed > 0)
	{
		bool		isnull;

		relid = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
											   1, &isnull));
		mirror_id = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
												2, &isnull));
	}
	SPI_finish();
	descend(&e);
	if (!OidIsValid(relid))
		return NIL;
	check_owner(relid);
	cs_point("failed row found");
	/* it may have been removed meanwhile */
	elevate(&e);
	spec = mirror_load_one(mirror_id);
	descend(&e);
	return spec == NULL ? NIL : list_make1(spec);
}

Datum
crate_sync_retry_failed(PG_FUNCTION_ARGS)
{
	List	   *specs = failed_specs(fcinfo);
	Oid			types[] = {INT4OID, INT8OID};
	Datum		values[] = {(Datum) 0, PG_ARGISNULL(1) ? (Datum) 0 : PG_GETARG_DATUM(1)};
	char		nulls[] = {' ', PG_ARGISNULL(1) ? 'n' : ' ', '\0'};
	int64		n = 0;
	Elevation	e;
	ListCell   *lc;

	elevate(&e);
	SPI_connect();
	foreach(lc, specs)
	{
		MirrorSpec *spec = lfirst(lc);
		Portal		portal;

		values[0] = Int32GetDatum(spec->mirror_id);
		portal = SPI_cursor_open_with_args(NULL,
										   "SELECT layout, packed_key FROM crate_sync.failed"
										   " WHERE mirror_id = $1 AND ($2 IS NULL OR failed_id = $2)"
										   " ORDER BY failed_id",
										   2, types, values, nulls, false, 0);
		for (;;)
		{
			SPI_cursor_fetch(portal, true, FAILED_FETCH_ROWS);
			if (SPI_processed == 0)
				break;
			for (uint64 i = 0; i < SPI_processed; i++)
			{
				HeapTuple	tup = SPI_tuptable->vals[i];
				TupleDesc	desc = SPI_tuptable->tupdesc;
				bool		isnull;
				int32		layout = DatumGetInt32(SPI_getbinval(tup, desc, 1, &isnull));
				Datum		stored = SPI_getbinval(tup, desc, 2, &isnull);
				bytea	   *key = DatumGetByteaPP(stored);

				/* the row stays failed until it has arrived */
				queue_put_key(spec->relid, spec->definition != NULL, layout, VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key));
				if ((Pointer) key != DatumGetPointer(stored))
					pfree(key);
			}
			n += SPI_processed;
			SPI_freetuptable(SPI_tuptable);
			CHECK_FOR_INTERRUPTS();
		}
		SPI_cursor_close(portal);
	}
	SPI_finish();
	descend(&e);
	PG_RETURN_INT64(n);
}

Datum
crate_sync_discard_failed(PG_FUNCTION_ARGS)
{
	List	   *specs = failed_specs(fcinfo);
	Oid			types[] = {INT4OID, INT8OID};
	Datum		values[] = {(Datum) 0, PG_ARGISNULL(1) ? (Datum) 0 : PG_GETARG_DATUM(1)};
	char		nulls[] = {' ', PG_ARGISNULL(1) ? 'n' : ' ', '\0'};
	int64		n = 0;
	Elevation	e;
	ListCell   *lc;

	elevate(&e);
	SPI_connect();
	foreach(lc, specs)
	{
		values[0] = Int32GetDatum(((MirrorSpec *) lfirst(lc))->mirror_id);
		n += run_sql("DELETE FROM crate_sync.failed"
					 " WHERE mirror_id = $1 AND ($2 IS NULL OR failed_id = $2)",
					 2, types, values, nulls);
	}
	SPI_finish();
	if (n > 0)
		tell_worker();
	descend(&e);
	PG_RETURN_INT64(n);
}

/* ---------------------------------------------------------------------------
 * Documents
 * ------------------------------------------------------------------------ */

/* from a call's arguments; target may be NULL */
static void
document_spec(Jsonb *schema, const char *target, Jsonb *options, bool warn, MirrorSpec *spec)
{
	DocEntry	entry;
	JsonbValue	nodes;

	mirror_check_catalog();
	document_entry(&schema->root, &entry, warn);
	memset(spec, 0, sizeof(MirrorSpec));
	spec->relid = document_root(entry.nodes);
	nodes.type = jbvBinary;
	nodes.val.binary.data = entry.nodes;
	nodes.val.binary.len = VARSIZE(schema) - ((char *) entry.nodes - (char *) schema);
	spec->definition = JsonbValueToJsonb(&nodes);
	spec->options = options;
	if (target != NULL)
		parse_target(target, &spec->target_schema, &spec->target_table);
	else if (entry.index != NULL)
		spec->target_table = entry.index;
	else
	{
		JsonbValue *label = getKeyJsonValueFromContainer(entry.nodes, "label", 5, NULL);

		if (label != NULL && label->type == jbvString)
			spec->target_table = pnstrdup(label->val.string.val, label->val.string.len);
	}
}

/* the document of a target, or NULL */
static MirrorSpec *
spec_of_document(const char *target)
{
	char	   *schema;
	char	   *table;
	Elevation	e;
	List	   *specs;
	ListCell   *lc;

	mirror_check_catalog();
	parse_target(target, &schema, &table);
	elevate(&e);
	specs = mirror_load(InvalidOid);
	descend(&e);
	foreach(lc, specs)
	{
		MirrorSpec *spec = lfirst(lc);

		if (spec->definition != NULL && strcmp(spec->target_table, table) == 0 &&
			strcmp(spec->target_schema, schema ? schema : "doc") == 0)
			return spec;
	}
	return NULL;
}

static void
no_document(const char *target, int elevel)
{
	ereport(elevel,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("there is no document with target table %s%s", target, elevel == NOTICE ? ", skipping" : ""),
			 elevel == NOTICE ? 0 : errhint("SELECT target FROM crate_sync.tables; has the names of all.")));
}

/* what each change of them would have us search in full for */
static void
warn_of_indexes(const Document *doc)
{
	for (int i = 1; i < doc->nnodes; i++)
	{
		for (int up = 0; up < 2; up++)
		{
			char	   *create = document_missing_index(doc->nodes[i], up == 1);

			if (create != NULL)
				ereport(WARNING,
						(errcode(ERRCODE_WARNING),
						 errmsg(up ? "%s: rows of \"%s\" have to be searched in full for each document" :
								"%s: rows of \"%s\" have to be searched in full for the documents of a change",
								doc->nodes[i]->path,
								get_rel_name(up ? doc->nodes[i]->relid : doc->nodes[i]->parent->relid)),
						 errhint("%s", create)));
		}
	}
}

/* locks the tables of a document, which the caller has to own, in the order of their OIDs */
static void
lock_tables_owned(List *relids, LOCKMODE lockmode)
{
	List	   *sorted = list_copy(relids);
	ListCell   *lc;

	foreach(lc, sorted)
		check_owner(lfirst_oid(lc));
	list_sort(sorted, list_oid_cmp);
	foreach(lc, sorted)
	{
		lock_owned(lfirst_oid(lc), lockmode);
		(void) find_all_inheritors(lfirst_oid(lc), lockmode, NULL);
	}
}

static char *
add_document(MirrorSpec *spec, bool copy_data, bool if_not_exists, bool *added)
{
	Relation	rel;
	MirrorTable *table;
	MirrorSpec *other;
	Elevation	e;
	char	   *name;

	*added = false;
	check_owner(spec->relid);
	rel = open_relation(spec->relid, AccessShareLock);
	table = document_mirror(rel, spec);
	lock_tables_owned(table->doc->relids, ShareRowExclusiveLock);
	/* as it is, now that it stays so */
	table = document_mirror(rel, spec);
	relation_close(rel, NoLock);
	name = target_name(table->target.schema, table->target.name);

	elevate(&e);
	other = spec_of_target(&table->target);
	descend(&e);
	if (other != NULL && other->definition != NULL && if_not_exists)
	{
		ereport(NOTICE,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("there is a document with target table %s already, skipping", name)));
		return name;
	}

	elevate(&e);
	if (!insert_mirror(table, spec, copy_data))
		target_in_use(table, spec_of_target(&table->target));
	document_name_triggers(table->doc, spec->mirror_id);
	(void) triggers_ensure_links(document_triggers(table->doc, InvalidOid));
	tell_worker();
	descend(&e);
	warn_of_indexes(table->doc);
	*added = true;
	return name;
}

Datum
crate_sync_add_document(PG_FUNCTION_ARGS)
{
	MirrorSpec	spec;
	char	   *name;
	bool		added;

	check_not_null(fcinfo, 0, "schema");
	document_spec(PG_GETARG_JSONB_P(0), PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1)),
				  PG_ARGISNULL(3) ? NULL : PG_GETARG_JSONB_P(3), true, &spec);
	if (!PG_ARGISNULL(2))
		spec.row_filter = text_to_cstring(PG_GETARG_TEXT_PP(2));
	name = add_document(&spec, PG_ARGISNULL(4) || PG_GETARG_BOOL(4),
						!PG_ARGISNULL(5) && PG_GETARG_BOOL(5), &added);
	if (added)
		warn_if_idle();
	PG_RETURN_TEXT_P(cstring_to_text(name));
}

static char *
add_document_of_file(void *arg, bool *added)
{
	MirrorSpec	spec;

	document_spec(arg, NULL, NULL, true, &spec);
	return add_document(&spec, true, false, added);
}

Datum
crate_sync_add_documents(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Jsonb	   *file;
	bool		any = false;

	check_not_null(fcinfo, 0, "schema");
	file = PG_GETARG_JSONB_P(0);
	if (!JB_ROOT_IS_ARRAY(file) || JB_ROOT_IS_SCALAR(file))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a file of documents must be a JSON array"),
				 errhint("One document by itself: crate_sync.add_document.")));
	InitMaterializedSRF(fcinfo, 0);
	for (uint32 i = 0; i < JB_ROOT_COUNT(file); i++)
	{
		Jsonb	   *entry = JsonbValueToJsonb(getIthJsonbValueFromContainer(&file->root, i));
		JsonbValue *index = JB_ROOT_IS_OBJECT(entry) ?
			getKeyJsonValueFromContainer(&entry->root, "index", 5, NULL) : NULL;
		Datum		values[3];
		bool		nulls[3] = {false, false, false};
		bool		added;
		char	   *message = try_to_add(add_document_of_file, entry, &added);

		nulls[0] = !added && (index == NULL || index->type != jbvString);
		if (added)
			values[0] = CStringGetTextDatum(message);
		else if (!nulls[0])
			values[0] = PointerGetDatum(cstring_to_text_with_len(index->val.string.val, index->val.string.len));
		values[1] = BoolGetDatum(added);
		values[2] = CStringGetTextDatum(message);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
		any |= added;
	}
	if (any)
		warn_if_idle();
	return (Datum) 0;
}

Datum
crate_sync_remove_document(PG_FUNCTION_ARGS)
{
	char	   *target;
	MirrorSpec *spec;
	bool		there;
	Elevation	e;

	check_not_null(fcinfo, 0, "target");
	target = text_to_cstring(PG_GETARG_TEXT_PP(0));
	spec = spec_of_document(target);
	if (spec == NULL)
	{
		no_document(target, !PG_ARGISNULL(2) && PG_GETARG_BOOL(2) ? NOTICE : ERROR);
		PG_RETURN_BOOL(false);
	}
	there = SearchSysCacheExists1(RELOID, ObjectIdGetDatum(spec->relid));
	if (there || !may_act_for(spec))
		check_owner(spec->relid);
	elevate(&e);
	(void) triggers_drop_links(spec->relations, psprintf(CS_LINK_TRIGGER "%d_", spec->mirror_id), true);
	delete_mirror(spec, !PG_ARGISNULL(1) && PG_GETARG_BOOL(1));
	descend(&e);
	PG_RETURN_BOOL(true);
}

static void
put_preview(ReturnSetInfo *rsinfo, const char *path, char *source, char *source_type,
			const char *target, const char *type, bool key, const char *note)
{
	Datum		values[7];
	bool		nulls[7] = {false};

	values[0] = CStringGetTextDatum(path);
	values[1] = CStringGetTextDatum(source);
	nulls[2] = source_type == NULL;
	values[2] = nulls[2] ? (Datum) 0 : CStringGetTextDatum(source_type);
	values[3] = CStringGetTextDatum(target);
	nulls[4] = type == NULL;
	values[4] = nulls[4] ? (Datum) 0 : CStringGetTextDatum(type);
	values[5] = BoolGetDatum(key);
	nulls[6] = note == NULL || *note == '\0';
	values[6] = nulls[6] ? (Datum) 0 : CStringGetTextDatum(note);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

static char *
link_text(const DocNode *node)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < list_length(node->up); i++)
		appendStringInfo(&buf, "%s%s.%s = %s.%s", i > 0 ? " AND " : "",
						 quote_identifier(get_rel_name(node->relid)), quote_identifier(list_nth(node->up, i)),
						 quote_identifier(get_rel_name(node->parent->relid)),
						 quote_identifier(list_nth(node->down, i)));
	return buf.data;
}

static void
preview_node(ReturnSetInfo *rsinfo, const DocNode *node)
{
	StringInfoData note;
	ListCell   *lc;
	char	   *create;

	initStringInfo(&note);
	append_note(&note, psprintf("%s, %s", link_text(node), node->why));
	create = document_missing_index(node, true);
	if (create != NULL)
		append_note(&note, psprintf("each document searches it in full: %s", create));
	create = document_missing_index(node, false);
	if (create != NULL)
		append_note(&note, psprintf("each change of it searches its parent in full: %s", create));
	if (!node->through && !node->many && !node->unique)
		append_note(&note, "where there are several, the first by its key is shown");
	put_preview(rsinfo, node->path, qualified_name(node->relid), NULL,
				node->through ? "" : node->label, node->type, false, note.data);
	foreach(lc, node->through ? NIL : node->columns)
	{
		DocColumn  *col = lfirst(lc);

		put_preview(rsinfo, psprintf("%s.%s", node->path, col->key), col->name,
					format_type_with_typemod(col->typid, col->typmod), col->key,
					col->map.storage == NULL ? col->map.type : psprintf("%s %s", col->map.type, col->map.storage),
					false, col->map.loses);
	}
	foreach(lc, node->children)
		preview_node(rsinfo, lfirst(lc));
}

Datum
crate_sync_preview_document(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	MirrorSpec	spec;
	MirrorTable *table;
	Relation	rel;

	check_not_null(fcinfo, 0, "schema");
	document_spec(PG_GETARG_JSONB_P(0), NULL, PG_ARGISNULL(1) ? NULL : PG_GETARG_JSONB_P(1), true, &spec);
	rel = open_relation(spec.relid, AccessShareLock);
	table = document_mirror(rel, &spec);
	relation_close(rel, NoLock);

	InitMaterializedSRF(fcinfo, 0);
	put_preview(rsinfo, table->doc->root->path, qualified_name(table->relid), NULL,
				target_name(table->target.schema, table->target.name), NULL, false, NULL);
	for (int i = 0; i < table->ncols; i++)
	{
		const MirrorColumn *col = &table->columns[i];
		const TargetColumn *tcol = &table->target.cols[i];

		if (col->node != NULL)
			preview_node(rsinfo, col->node);
		else
			put_preview(rsinfo, psprintf("%s.%s", table->doc->root->path, tcol->name), col->name,
						format_type_with_typemod(col->typid, col->typmod), tcol->name,
						tcol->storage == NULL ? tcol->type : psprintf("%s %s", tcol->type, tcol->storage),
						tcol->key, col->map.loses);
	}
	return (Datum) 0;
}

Datum
crate_sync_get_document_query(PG_FUNCTION_ARGS)
{
	char	   *target = text_to_cstring(PG_GETARG_TEXT_PP(0));
	MirrorSpec *spec = spec_of_document(target);
	MirrorTable *table;
	Relation	rel;

	if (spec == NULL)
		no_document(target, ERROR);
	check_owner(spec->relid);
	rel = open_relation(spec->relid, AccessShareLock);
	table = document_mirror(rel, spec);
	relation_close(rel, NoLock);
	PG_RETURN_TEXT_P(cstring_to_text(document_query(table)));
}

/* ---------------------------------------------------------------------------
 * Before others' DDL
 * ------------------------------------------------------------------------ */

static ProcessUtility_hook_type next_utility = NULL;

/* no error, no lock, and no question of rights: those are the command's own */
static Oid
relation_of(const RangeVar *rv)
{
	Oid			nsp;

	if (rv == NULL || rv->catalogname != NULL)
		return InvalidOid;
	if (rv->schemaname == NULL)
		return RelnameGetRelid(rv->relname);
	nsp = get_namespace_oid(rv->schemaname, true);
	return OidIsValid(nsp) ? get_relname_relid(rv->relname, nsp) : InvalidOid;
}

/*
 * A partition gets a clone of the row trigger of what it becomes a part of.
 * Where it has one already, as it is mirrored by itself, PostgreSQL's error
 * speaks of a trigger that the user has never seen.
 */
static void
before_attach(AlterTableStmt *stmt)
{
	ListCell   *lc;

	if (!OidIsValid(get_extension_oid("crate_sync", true)))
		return;
	foreach(lc, stmt->cmds)
	{
		AlterTableCmd *cmd = lfirst(lc);
		Oid			root;
		Oid			part;
		List	   *members;
		List	   *mirrored;
		ListCell   *lm;
		Elevation	e;

		if (!IsA(cmd, AlterTableCmd) || cmd->subtype != AT_AttachPartition)
			continue;
		root = relation_of(stmt->relation);
		part = relation_of(((PartitionCmd *) cmd->def)->name);
		if (!OidIsValid(root) || !OidIsValid(part) ||
			get_rel_relkind(root) != RELKIND_PARTITIONED_TABLE ||
			!OidIsValid(get_trigger_oid(root, CS_TRIGGER, true)) ||
			!cs_table_owner_ok(root, GetUserId()) || !cs_table_owner_ok(part, GetUserId()))
			continue;

		elevate(&e);
		mirrored = mirror_relids();
		descend(&e);
		members = find_all_inheritors(part, NoLock, NULL);
		foreach(lm, members)
		{
			Oid			member = lfirst_oid(lm);

			if (list_member_oid(mirrored, member) &&
				OidIsValid(get_trigger_oid(member, CS_TRIGGER, true)))
				ereport(ERROR,
						(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						 errmsg("\"%s\" is mirrored by itself and cannot become a part of \"%s\", which is mirrored as a whole",
								get_rel_name(member), get_rel_name(root)),
						 errhint("SELECT crate_sync.remove_table(%s); then attach it: its rows go to the other's target table.",
								 quote_literal_cstr(qualified_name(member)))));
		}
	}
}

/*
 * By a hook, as an event trigger would make every ALTER TABLE of the database
 * fail where the library is missing.
 */
static void
before_utility(PlannedStmt *pstmt, const char *query, bool read_only_tree,
			   ProcessUtilityContext context, ParamListInfo params,
			   QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc)
{
	if (IsA(pstmt->utilityStmt, AlterTableStmt))
		before_attach((AlterTableStmt *) pstmt->utilityStmt);
	if (next_utility)
		next_utility(pstmt, query, read_only_tree, context, params, env, dest, qc);
	else
		standard_ProcessUtility(pstmt, query, read_only_tree, context, params, env, dest, qc);
}

void
tables_init(void)
{
	next_utility = ProcessUtility_hook;
	ProcessUtility_hook = before_utility;
}

/* does the statement drop this extension, and may the caller do that? */
static bool
drops_us(Node *parsetree)
{
	DropStmt   *stmt = (DropStmt *) parsetree;
	Oid			extoid;
	ListCell   *lc;

	if (!IsA(parsetree, DropStmt) || stmt->removeType != OBJECT_EXTENSION)
		return false;
	foreach(lc, stmt->objects)
	{
		if (strcmp(strVal(lfirst(lc)), "crate_sync") != 0)
			continue;
		extoid = get_extension_oid("crate_sync", true);
		return OidIsValid(extoid) && cs_extension_owner_ok(extoid, GetUserId());
	}
	return false;
}

/*
 * Before DROP EXTENSION crate_sync.  By itself that would lock the queue first
 * and then wait for a source table, whose writer waits for the queue in turn at
 * its commit.
 */
Datum
crate_sync_before_drop(PG_FUNCTION_ARGS)
{
	Node	   *parsetree;
	Elevation	e;
	List	   *relids;
	ListCell   *lc;

	if (!CALLED_AS_EVENT_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_EVENT_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("this function can only be called as an event trigger")));
	/* not every event has one */
	parsetree = ((EventTriggerData *) fcinfo->context)->parsetree;
	if (parsetree == NULL || !drops_us(parsetree))
		PG_RETURN_NULL();

	elevate(&e);
	relids = mirror_relids();
	descend(&e);
	foreach(lc, relids)
	{
		Oid			relid = lfirst_oid(lc);

		LockRelationOid(relid, AccessExclusiveLock);
		if (SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relid)))
			(void) find_all_inheritors(relid, AccessExclusiveLock, NULL);
		else
			UnlockRelationOid(relid, AccessExclusiveLock);
	}
	cs_worker_let_go();
	PG_RETURN_NULL();
}
