/*-------------------------------------------------------------------------
 *
 * reload.c
 *		The worker's tables: read from the catalog, written down with every
 *		acknowledgement.
 *
 * An acknowledgement is one transaction: chunks whose rows have arrived or
 * were parked leave the queue, parked rows are written down, loads and counts
 * move on.  If it is lost, work is repeated, nothing else.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "access/relation.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "base/bounded.h"
#include "base/point.h"
#include "base/settings.h"
#include "capture/triggers.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "document/document.h"
#include "executor/spi.h"
#include "functions/tables.h"
#include "jobs/verify.h"
#include "pipeline/code.h"
#include "pipeline/plans.h"
#include "pipeline/table.h"
#include "shared/live.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

dlist_head	sync_tables = DLIST_STATIC_INIT(sync_tables);

Oid			state_catalog_relid = InvalidOid;	/* of crate_sync.mirror */

/* mirror_state.due of a table that came into the catalog by a dump */
#define DUE_RESTORED "it came with a dump"

static bool catalog_stale = true;
static TimestampTz next_reload = 0;
static uint64 last_pass_no = 0;
static int	done_passes = 0;	/* waiting for an acknowledgement */
static List *dropped_chunks = NIL;	/* of tables that are not mirrored */
static MemoryContext dropped_cxt = NULL;
static TimestampTz process_start = 0;

/* the snapshot that the tables were read in */
static struct
{
	bool		complete;		/* they all were */
	FullTransactionId xmin;
	FullTransactionId xmax;
	TransactionId *running;		/* topmost transactions, between the two */
	int			nrunning;
}			reload_snapshot;

/* ---------------------------------------------------------------------
 * Passes
 * ------------------------------------------------------------------- */

uint64
pass_last_no(void)
{
	return last_pass_no;
}

Pass *
pass_create(SyncTable *st, PassKind kind)
{
	MemoryContext cxt = AllocSetContextCreate(st->cxt, "crate_sync pass",
											  ALLOCSET_SMALL_SIZES);
	Pass	   *pass = MemoryContextAllocZero(cxt, sizeof(Pass));

	pass->cxt = cxt;
	pass->kind = kind;
	pass->no = ++last_pass_no;
	dlist_push_tail(&st->passes, &pass->node);
	return pass;
}

static void
pass_free(Pass *pass)
{
	if (pass->done)
		done_passes--;
	dlist_delete(&pass->node);
	MemoryContextDelete(pass->cxt);
}

void
pass_settle(SyncTable *st, Pass *pass, int n)
{
	pass->pending -= n;
	if (pass->pending == 0 && pass->fed && !pass->done)
	{
		pass->done = true;
		done_passes++;
	}
}

/* forgets all that is in memory; chunks are held, or read again */
static void
drop_work(SyncTable *st, bool hold)
{
	lanes_drop(st);
	while (!dlist_is_empty(&st->passes))
	{
		Pass	   *pass = dlist_container(Pass, node, dlist_head_node(&st->passes));
		ListCell   *lc;

		foreach(lc, pass->chunks)
		{
			feed_give_up(lfirst(lc), hold);
		}
		pass_free(pass);
	}
	load_restart(st);
}

void
state_drop_chunk(const QueueChunk *chunk)
{
	MemoryContext oldcxt;
	QueueChunk *copy;

	if (dropped_cxt == NULL)
		dropped_cxt = AllocSetContextCreate(TopMemoryContext, "crate_sync dropped chunks",
											ALLOCSET_DEFAULT_SIZES);
	oldcxt = MemoryContextSwitchTo(dropped_cxt);
	copy = palloc(sizeof(QueueChunk));
	*copy = *chunk;
	copy->keys = NULL;
	copy->shared = NULL;
	dropped_chunks = lappend(dropped_chunks, copy);
	MemoryContextSwitchTo(oldcxt);
}

/* ---------------------------------------------------------------------
 * From the catalog
 * ------------------------------------------------------------------- */

static int
compare_oids(const void *a, const void *b)
{
	return oid_cmp(a, b);
}

/* its partitions at any depth, and composite types in its columns */
static bool
is_watched(const SyncTable *st, Oid relid)
{
	return st->nwatched > 0 &&
		bsearch(&relid, st->watched, st->nwatched, sizeof(Oid), compare_oids) != NULL;
}

static void
look_again(SyncTable *st)
{
	st->stale = catalog_stale = true;
	next_reload = 0;
}

static void
relcache_callback(Datum arg, Oid relid)
{
	dlist_iter	it;

	dlist_foreach(it, &sync_tables)
	{
		SyncTable  *st = dlist_container(SyncTable, node, it.cur);

		if (OidIsValid(relid) && st->relid != relid && !is_watched(st, relid))
			continue;
		look_again(st);
		st->error_retry_at = code_retry_at(st);	/* perhaps that was the remedy */
	}
	if (!OidIsValid(relid) || relid == state_catalog_relid)
		state_changed();
}

/* labels, collations, functions: what changes values without touching a row */
static void
values_callback(Datum arg, int cacheid, uint32 hashvalue)
{
	dlist_iter	it;

	dlist_foreach(it, &sync_tables)
	{
		SyncTable  *st = dlist_container(SyncTable, node, it.cur);

		if (cacheid == PROCOID ? st->calls_functions : st->has_types)
			look_again(st);
	}
}

/* a schema was made, dropped or renamed, and nobody tells its tables */
static void
schema_callback(Datum arg, int cacheid, uint32 hashvalue)
{
	dlist_iter	it;

	dlist_foreach(it, &sync_tables)
		look_again(dlist_container(SyncTable, node, it.cur));
}

void
state_init(void)
{
	process_start = GetCurrentTimestamp();
	CacheRegisterRelcacheCallback(relcache_callback, (Datum) 0);
	CacheRegisterSyscacheCallback(ENUMOID, values_callback, (Datum) 0);
	CacheRegisterSyscacheCallback(COLLOID, values_callback, (Datum) 0);
	CacheRegisterSyscacheCallback(PROCOID, values_callback, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, schema_callback, (Datum) 0);
}

void
state_changed(void)
{
	catalog_stale = true;
	next_reload = 0;
}

/*
 * Takes in what was committed before, and writes down what comes of it: a load
 * that is owed is known from then on.
 */
void
state_look(void)
{
	StartTransactionCommand();
	CommitTransactionCommand();
	if (catalog_stale)
		state_reload();
	if (state_ack_due())
		state_ack(false);
}

bool
state_catalog_stale(void)
{
	return catalog_stale && GetCurrentTimestamp() >= next_reload;
}

int64
state_count(void)
{
	dlist_iter	it;
	int64		n = 0;

	dlist_foreach(it, &sync_tables)
		n++;
	return n;
}

SyncTable *
state_find(Oid relid)
{
	dlist_iter	it;

	dlist_foreach(it, &sync_tables)
	{
		SyncTable  *st = dlist_container(SyncTable, node, it.cur);

		if (st->relid == relid && st->spec.relations == NIL)
			return st;
	}
	return NULL;
}

static char *
spi_string(int row, const char *name)
{
	return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						SPI_fnumber(SPI_tuptable->tupdesc, name));
}

static int64
spi_int(int row, const char *name, int64 when_null)
{
	bool		isnull;
	int			attno = SPI_fnumber(SPI_tuptable->tupdesc, name);
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
									  attno, &isnull);

	if (isnull)
		return when_null;
	switch (SPI_gettypeid(SPI_tuptable->tupdesc, attno))
	{
		case INT4OID:
			return DatumGetInt32(value);
		case OIDOID:
			return DatumGetObjectId(value);
		case BOOLOID:
			return DatumGetBool(value);
		default:
			return DatumGetInt64(value);
	}
}

/* what was written down about a table; makes its row if there is none */
static void
read_durable(SyncTable *st)
{
	Oid			types[2] = {INT4OID, OIDOID};
	Datum		values[2] = {Int32GetDatum(st->spec.mirror_id), ObjectIdGetDatum(st->relid)};
	char	   *phase;
	MemoryContext oldcxt;

	SPI_connect();
	SPI_execute_with_args("UPDATE crate_sync.mirror_state SET relid = $2 WHERE mirror_id = $1",
						  2, types, values, NULL, false, 0);
	if (SPI_processed == 0)
		/* add_table makes it with the row of mirror, which dumps have, too */
		SPI_execute_with_args("INSERT INTO crate_sync.mirror_state (mirror_id, relid, due) "
							  "VALUES ($1, $2, '" DUE_RESTORED "')",
							  2, types, values, NULL, false, 0);
	SPI_execute_with_args("SELECT * FROM crate_sync.mirror_state WHERE mirror_id = $1",
						  1, types, values, NULL, false, 0);
	if (SPI_processed == 1)
	{
		char	   *s;

		oldcxt = MemoryContextSwitchTo(st->cxt);
		st->resync_done = spi_int(0, "resync_done", -1);
		st->verify_done = spi_int(0, "verify_done", 0);
		st->claimed = spi_int(0, "claimed", 0);
		st->lanes_used = spi_int(0, "lanes_used", 0);
		st->loaded_once = spi_int(0, "last_load_time", 0) != 0;
		st->load_rel = spi_int(0, "load_rel", InvalidOid);
		st->load_filenode = spi_int(0, "load_filenode", InvalidOid);
		st->load_pos = spi_int(0, "load_block", 0);
		st->load_rows = spi_int(0, "load_rows", 0);
		st->load_total = spi_int(0, "load_total", -1);
		st->load_bytes = spi_int(0, "load_bytes", 0);
		st->load_start = spi_int(0, "load_start", 0);
		s = spi_string(0, "shape");
		st->shape = s ? pstrdup(s) : NULL;
		s = spi_string(0, "due");
		st->due = s ? pstrdup(s) : NULL;
		st->from_dump = s != NULL && strcmp(s, DUE_RESTORED) == 0;
		st->due_again = spi_int(0, "due_again", 0);
		st->n_differences = spi_int(0, "n_differences", -1);
		s = spi_string(0, "target_id");
		st->target_id = s && strchr(s, ' ') ? pstrdup(s) : NULL;
		s = spi_string(0, "load_mode");
		st->load_mode = s ? pstrdup(s) : NULL;
		s = spi_string(0, "sweep_key");
		st->sweep_key = s ? pstrdup(s) : NULL;
		phase = spi_string(0, "load_phase");
		st->phase = phase == NULL ? LOAD_NONE :
			strcmp(phase, "load") == 0 ? LOAD_ROWS :
			strcmp(phase, "sweep") == 0 ? LOAD_SWEEP : LOAD_NONE;
		MemoryContextSwitchTo(oldcxt);
	}
	SPI_execute_with_args("SELECT target_key FROM crate_sync.failed WHERE mirror_id = $1",
						  1, types, values, NULL, false, failed_key_limit() + 1);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		char	   *key = spi_string(i, "target_key");

		failed_key_note(st, key, strlen(key));
	}
	SPI_finish();
	st->state_known = true;
	load_restart(st);
}

static SyncTable *
create_table(const MirrorSpec *spec)
{
	MemoryContext cxt = AllocSetContextCreate(TopMemoryContext, "crate_sync table",
											  ALLOCSET_DEFAULT_SIZES);
	SyncTable  *st = MemoryContextAllocZero(cxt, sizeof(SyncTable));

	st->cxt = cxt;
	st->relid = spec->relid;
	st->spec.mirror_id = spec->mirror_id;
	if (spec->relations != NIL)
	{
		MemoryContext oldcxt = MemoryContextSwitchTo(cxt);

		st->spec.relations = list_copy(spec->relations);
		MemoryContextSwitchTo(oldcxt);
	}
	st->stale = true;
	st->unrefreshed = true;
	st->batch_rows = cs_batch_rows;
	st->load_total = -1;
	dlist_init(&st->passes);
	dlist_push_tail(&sync_tables, &st->node);
	return st;
}

/* reading it cost the others too much: not yet */
static void
leave_out(SyncTable *st)
{
	char	   *hint;
	bool		told;
	char	   *why = bounded_reproach(st->relid, &hint, &told);

	if (why == NULL)
		return;
	if (told)
		strlcpy(st->logged_error, why, sizeof(st->logged_error));	/* not at each start of a worker */
	table_trouble(st, "reading", why, hint);
	st->error_retry_at = code_retry_at(st);
}

static void
forget_table(SyncTable *st)
{
	drop_work(st, false);
	plans_forget(st);
	dlist_delete(&st->node);
	if (st->def_cxt != NULL)
		MemoryContextDelete(st->def_cxt);
	MemoryContextDelete(st->cxt);
}

/* ---------------------------------------------------------------------
 * What has to have stayed as it was for the queue to be the whole truth
 * ------------------------------------------------------------------- */

/*
 * A table's shape is written down as words, compared one by one:
 *
 * 0: SHAPE_VERSION; what had none is of the first version, see former_shape()
 * 1: columns, partitions at any depth, triggers (each with the transaction
 *	  that last touched it), types, collations, the functions of its filter
 * 2: the transactions that last touched its columns, as a new type of the same
 *	  name does, but as a statistics target does, too; so it counts only with
 * 3: the storage of its leaves, which a rewrite replaces
 * 4: how many labels its enums have; new ones change no row
 * 5: the labels
 * 6: the worker's start, if any of it is unlogged: it may have been emptied by
 *	  a crash whenever no worker was running
 */
#define SHAPE_VERSION "2"
#define SHAPE_WORDS 7

typedef enum Captured
{
	CAPTURED_NOT,				/* some rows are not */
	CAPTURED_PARTLY,			/* rows are, but by a trigger that can be put off, or not TRUNCATE */
	CAPTURED_WHOLLY
} Captured;

typedef struct Shape
{
	char	   *text;
	char	   *labels_before;	/* of as many labels as there were then */
	Captured	captured;
	List	   *types;			/* relations of composite types */
	bool		has_types;		/* of users, or collations of theirs */
} Shape;

static const char shape_query[] =
"WITH RECURSIVE tree (oid) AS (SELECT $1 UNION ALL "
"  SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN tree ON i.inhparent = tree.oid WHERE NOT i.inhdetachpending), "
"cols AS (SELECT *, xmin AS touched_by FROM pg_catalog.pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped), "
"types (oid) AS (SELECT atttypid FROM cols UNION "
"  SELECT x.oid FROM types JOIN pg_catalog.pg_type y ON y.oid = types.oid, LATERAL ("
"    SELECT y.typelem WHERE y.typcategory = 'A' "
"    UNION ALL SELECT y.typbasetype WHERE y.typtype = 'd' "
"    UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE y.typtype = 'r' AND r.rngtypid = y.oid "
"    UNION ALL SELECT r.rngtypid FROM pg_catalog.pg_range r WHERE y.typtype = 'm' AND r.rngmultitypid = y.oid "
"    UNION ALL SELECT f.atttypid FROM pg_catalog.pg_attribute f "
"      WHERE y.typtype = 'c' AND f.attrelid = y.typrelid AND f.attnum > 0 AND NOT f.attisdropped) AS x (oid)), "
"leaves AS (SELECT c.oid, c.relfilenode, c.relpersistence FROM tree JOIN pg_catalog.pg_class c ON c.oid = tree.oid), "
"labels AS (SELECT e.oid::pg_catalog.text || e.enumlabel::pg_catalog.text AS x, pg_catalog.row_number() OVER (ORDER BY e.oid) AS n "
"  FROM types JOIN pg_catalog.pg_enum e ON e.enumtypid = types.oid), "
"ours AS (SELECT g.tgrelid, g.tgname, g.tgenabled, g.xmin FROM tree JOIN pg_catalog.pg_trigger g ON g.tgrelid = tree.oid "
"  WHERE g.tgfoid = $3 AND (g.tgname = ANY ($5) OR g.tgname = ANY ($6))), "
"parts (x) AS ("
"  SELECT 'a' || a.attnum || ' ' || a.attname::pg_catalog.text || ' ' || a.atttypid || ' ' || a.atttypmod || ' ' || a.attgenerated::pg_catalog.text || ' ' || "
"    coalesce((SELECT pg_catalog.md5(d.adbin::pg_catalog.text) FROM pg_catalog.pg_attrdef d "
"      WHERE a.attgenerated <> '' AND d.adrelid = $1 AND d.adnum = a.attnum), '') FROM cols a "
"  UNION ALL SELECT 't' || tgrelid || tgname::pg_catalog.text || tgenabled::pg_catalog.text || xmin::pg_catalog.text FROM ours "
"  UNION ALL SELECT 'p' || oid FROM tree "
"  UNION ALL SELECT 'c' || y.oid || ' ' || f.attnum || ' ' || f.attname::pg_catalog.text || ' ' || f.atttypid || ' ' || f.atttypmod "
"    FROM types JOIN pg_catalog.pg_type y ON y.oid = types.oid JOIN pg_catalog.pg_attribute f ON f.attrelid = y.typrelid "
"    WHERE y.typtype = 'c' AND f.attnum > 0 AND NOT f.attisdropped "
"  UNION ALL SELECT 'l' || l.oid || ' ' || coalesce(l.collversion, '') FROM pg_catalog.pg_collation l "
"    WHERE l.oid IN (SELECT attcollation FROM cols) AND l.oid >= 16384 "
"  UNION ALL SELECT 'f' || p.oid || ' ' || pg_catalog.md5(p.prosrc || coalesce(p.probin, '') || "
"    coalesce(p.prosqlbody::pg_catalog.text, '') || coalesce(p.proconfig::pg_catalog.text, '')) "
"    FROM pg_catalog.pg_proc p WHERE p.oid = ANY ($4)) "
"SELECT pg_catalog.format('" SHAPE_VERSION " %s %s %s %s %s', "
"    (SELECT pg_catalog.md5(pg_catalog.string_agg(x, '|' ORDER BY x)) FROM parts), "
"    (SELECT pg_catalog.md5(pg_catalog.string_agg(attnum || ' ' || touched_by::pg_catalog.text, '|' ORDER BY attnum)) FROM cols), "
"    (SELECT pg_catalog.md5(pg_catalog.string_agg(oid || ' ' || relfilenode, '|' ORDER BY oid)) FROM leaves), "
"    (SELECT pg_catalog.count(*) FROM labels), "
"    (SELECT coalesce(pg_catalog.md5(pg_catalog.string_agg(x, '|' ORDER BY n)), '-') FROM labels)), "
"  (SELECT coalesce(pg_catalog.md5(pg_catalog.string_agg(x, '|' ORDER BY n)), '-') FROM labels WHERE n <= $2), "
"  (SELECT pg_catalog.bool_or(relpersistence = 'u') FROM leaves), "
"  (SELECT pg_catalog.count(*) FROM ours WHERE tgenabled = 'A') = "
"    pg_catalog.cardinality($5 || $6) * (SELECT pg_catalog.count(*) FROM tree), "
"  (SELECT pg_catalog.count(*) FROM ours WHERE tgenabled IN ('A', 'O') AND tgname = ANY ($5)) = "
"    pg_catalog.cardinality($5) * (SELECT pg_catalog.count(*) FROM tree), "
"  ARRAY(SELECT y.typrelid FROM types JOIN pg_catalog.pg_type y ON y.oid = types.oid WHERE y.typtype = 'c'), "
"  EXISTS (SELECT FROM types WHERE oid >= 16384) OR EXISTS (SELECT FROM cols WHERE attcollation >= 16384)";

/* the n-th word of a shape, or an empty one */
static const char *
shape_word(const char *shape, int n, int *len)
{
	const char *p = shape ? shape : "";

	for (; n > 0 && *p != '\0'; n--)
	{
		p += strcspn(p, " ");
		p += *p == ' ';
	}
	*len = strcspn(p, " ");
	return p;
}

static bool
same_word(const char *a, const char *b, int n)
{
	int			alen;
	int			blen;

	a = shape_word(a, n, &alen);
	b = shape_word(b, n, &blen);
	return alen == blen && memcmp(a, b, alen) == 0;
}

/*
 * A shape as the first version of the catalog has it, so that an update of
 * the extension loads nothing anew.
 */
static char *
former_shape(SyncTable *st, bool unlogged)
{
	Oid			types[1] = {OIDOID};
	Datum		values[1] = {ObjectIdGetDatum(st->relid)};
	char	   *shape = "";

	if (SPI_execute_with_args(
							  "WITH RECURSIVE tree (oid) AS (SELECT $1::oid UNION ALL "
							  "  SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN tree ON i.inhparent = tree.oid) "
							  "SELECT pg_catalog.md5(pg_catalog.string_agg(x, '|' ORDER BY x)) "
							  "FROM (SELECT 'a' || a.attname::pg_catalog.text || ' ' || a.atttypid || ' ' || a.atttypmod || ' ' || a.xmin::text AS x "
							  "    FROM pg_catalog.pg_attribute a "
							  "    WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped "
							  "  UNION ALL SELECT 't' || g.tgrelid || g.tgname::pg_catalog.text || g.tgenabled::pg_catalog.text || g.xmin::text "
							  "    FROM pg_catalog.pg_trigger g JOIN tree ON g.tgrelid = tree.oid "
							  "    WHERE g.tgname IN ('" CS_TRIGGER "', '" CS_TRUNCATE_TRIGGER "') "
							  "  UNION ALL SELECT 'p' || tree.oid FROM tree) AS parts",
							  1, types, values, NULL, true, 0) == SPI_OK_SELECT && SPI_processed == 1)
		shape = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	/* of an unlogged one it had the worker's start: another one */
	return unlogged ? psprintf("%s -", shape) : shape;
}

static bool
shape_bool(int col)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, col, &isnull);

	return !isnull && DatumGetBool(value);
}

static Datum
name_array(List *names)
{
	Datum	   *elems = palloc(sizeof(Datum) * (list_length(names) + 1));
	ListCell   *lc;

	foreach(lc, names)
		elems[foreach_current_index(lc)] = DirectFunctionCall1(namein, CStringGetDatum(lfirst(lc)));
	return PointerGetDatum(construct_array(elems, list_length(names), NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR));
}

/*
 * Looks at the catalog, of a relation with these triggers; the result is in the
 * caller's context.
 */
static void
relation_shape(SyncTable *st, Oid relid, const MirrorTable *def, List *triggers, List *truncate_triggers,
			   Shape *shape)
{
	static SPIPlanPtr plan = NULL;
	MemoryContext cxt = CurrentMemoryContext;
	Oid			types[6] = {OIDOID, INT8OID, OIDOID, OIDARRAYOID, NAMEARRAYOID, NAMEARRAYOID};
	Datum		values[6];
	Datum	   *elems;
	int			nelems;
	int			n = 0;
	int			len;
	bool		isnull;
	ListCell   *lc;

	elems = palloc(sizeof(Datum) * (list_length(def->filter_functions) + 1));
	foreach(lc, def->filter_functions)
		elems[n++] = ObjectIdGetDatum(lfirst_oid(lc));
	values[0] = ObjectIdGetDatum(relid);
	values[1] = Int64GetDatum(strtoll(shape_word(st->shape, 4, &len), NULL, 10));
	values[2] = ObjectIdGetDatum(triggers_function());
	values[3] = PointerGetDatum(construct_array(elems, n, OIDOID, sizeof(Oid), true, TYPALIGN_INT));
	values[4] = name_array(triggers);
	values[5] = name_array(truncate_triggers);

	memset(shape, 0, sizeof(Shape));
	SPI_connect();
	if (plan == NULL)
	{
		SPIPlanPtr	made = SPI_prepare(shape_query, lengthof(types), types);

		if (made == NULL)
			elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
		SPI_keepplan(made);
		plan = made;
	}
	if (SPI_execute_plan(plan, values, NULL, true, 0) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "could not look at relation %u", relid);
	shape->text = MemoryContextStrdup(cxt, SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1));
	shape->labels_before = MemoryContextStrdup(cxt, SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2));
	shape->captured = shape_bool(4) ? CAPTURED_WHOLLY : shape_bool(5) ? CAPTURED_PARTLY : CAPTURED_NOT;
	shape->has_types = shape_bool(7);
	deconstruct_array(DatumGetArrayTypeP(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 6, &isnull)),
					  OIDOID, sizeof(Oid), true, TYPALIGN_INT, &elems, NULL, &nelems);
	MemoryContextSwitchTo(cxt);
	for (int i = 0; i < nelems; i++)
		shape->types = lappend_oid(shape->types, DatumGetObjectId(elems[i]));
	if (shape_bool(3))
		shape->text = psprintf("%s " INT64_FORMAT, shape->text, process_start);
	SPI_finish();
	MemoryContextSwitchTo(cxt);
}

/* an md5 of the n-th words of some shapes */
static char *
words_together(List *texts, int n)
{
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	foreach(lc, texts)
	{
		int			len;
		const char *word = shape_word(lfirst(lc), n, &len);

		appendBinaryStringInfo(&buf, word, len);
		appendStringInfoChar(&buf, '|');
	}
	return TextDatumGetCString(DirectFunctionCall1(md5_text, CStringGetTextDatum(buf.data)));
}

/* of a document: that of all of its relations; a label more in any of them counts */
static void
document_shape(SyncTable *st, const MirrorTable *def, Shape *shape)
{
	List	   *texts = NIL;
	bool		unlogged = false;
	ListCell   *lc;

	memset(shape, 0, sizeof(Shape));
	shape->captured = CAPTURED_WHOLLY;
	foreach(lc, def->doc->relids)
	{
		Shape		one;
		List	   *triggers = NIL;
		List	   *truncate_triggers = NIL;
		ListCell   *ll;
		int			len;

		foreach(ll, def->doc->links)
		{
			DocLink    *link = lfirst(ll);

			if (link->relid != lfirst_oid(lc))
				continue;
			triggers = lappend(triggers, link->trigger);
			truncate_triggers = lappend(truncate_triggers, link->truncate_trigger);
		}
		relation_shape(st, lfirst_oid(lc), def, triggers, truncate_triggers, &one);
		if (!triggers_fit(document_triggers(def->doc, lfirst_oid(lc))))
			one.captured = CAPTURED_NOT;
		texts = lappend(texts, one.text);
		(void) shape_word(one.text, SHAPE_WORDS - 1, &len);
		unlogged |= len > 0;
		shape->captured = Min(shape->captured, one.captured);
		shape->types = list_concat(shape->types, one.types);
		shape->has_types |= one.has_types;
	}
	shape->labels_before = words_together(texts, 5);
	shape->text = psprintf(SHAPE_VERSION " %s %s %s 0 %s", words_together(texts, 1), words_together(texts, 2),
						   words_together(texts, 3), shape->labels_before);
	if (unlogged)
		shape->text = psprintf("%s " INT64_FORMAT, shape->text, process_start);
}

static void
table_shape(SyncTable *st, const MirrorTable *def, Shape *shape)
{
	if (def->doc != NULL)
		document_shape(st, def, shape);
	else
		relation_shape(st, st->relid, def, list_make1(CS_TRIGGER), list_make1(CS_TRUNCATE_TRIGGER), shape);
}

/* is what was written down still so, as far as rows go? */
static bool
shape_holds(SyncTable *st, const Shape *now)
{
	const char *then = st->shape;
	const char *word;
	int			len;

	word = shape_word(then, 0, &len);
	if (len != strlen(SHAPE_VERSION) || memcmp(word, SHAPE_VERSION, len) != 0)
	{
		bool		same;

		(void) shape_word(now->text, SHAPE_WORDS - 1, &len);
		SPI_connect();
		same = strcmp(then, former_shape(st, len > 0)) == 0;
		SPI_finish();
		return same;
	}
	if (!same_word(then, now->text, 1) || !same_word(then, now->text, SHAPE_WORDS - 1))
		return false;
	if (!same_word(then, now->text, 2) && !same_word(then, now->text, 3))
		return false;
	word = shape_word(then, 5, &len);
	return len == strlen(now->labels_before) && memcmp(word, now->labels_before, len) == 0;
}

/* all that lanes, batches and plans were made for */
static char *
definition_signature(const MirrorTable *def)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "%u %s.%s %s", def->owner, def->schemaname, def->relname,
					 def->target.qualified);
	for (int i = 0; i < def->ncols; i++)
		appendStringInfo(&buf, " %s %u %d %s %s", def->columns[i].name, def->columns[i].typid,
						 def->columns[i].typmod, def->target.cols[i].name,
						 def->target.cols[i].type);
	for (int k = 0; k < def->nkeys; k++)
		appendStringInfo(&buf, " %d", def->keys[k]);
	appendStringInfo(&buf, " %d %s", def->soft_delete_attnum,
					 def->row_filter ? def->row_filter : "");
	if (def->doc != NULL)
	{
		ListCell   *lc;

		/* what walks and subqueries are made of, and what is queued */
		appendStringInfo(&buf, " %s", document_query(def));
		foreach(lc, def->doc->links)
		{
			DocLink    *link = lfirst(lc);

			appendStringInfo(&buf, " %s %d %d", link->trigger, link->layout.id, list_length(link->args));
		}
	}
	return buf.data;
}

/* for progress; who has a leaf locked is not waited for */
static void
estimate_rows(SyncTable *st)
{
	ListCell   *lc;
	double		total = 0;

	foreach(lc, st->feed_leaves)
	{
		Relation	rel;
		BlockNumber pages;
		double		tuples;
		double		visible;

		if (!ConditionalLockRelationOid(lfirst_oid(lc), AccessShareLock))
			continue;
		rel = try_relation_open(lfirst_oid(lc), NoLock);
		if (rel == NULL)
			continue;
		table_relation_estimate_size(rel, NULL, &pages, &tuples, &visible);
		total += tuples;
		relation_close(rel, NoLock);
	}
	st->load_total = (int64) total;
}

/* what the user asks for now, in a context of its own: it changes more often */
static void
take_spec(SyncTable *st, const MirrorSpec *seen)
{
	MemoryContext old = st->spec_cxt;
	MemoryContext fresh = AllocSetContextCreate(st->cxt, "crate_sync table spec", ALLOCSET_SMALL_SIZES);
	MirrorSpec *spec;

	MemoryContextSwitchTo(fresh);
	spec = mirror_load_one(seen->mirror_id);
	if (spec == NULL || spec->relid != st->relid)
	{
		/* taken away between two looks */
		MemoryContextSwitchTo(st->cxt);
		MemoryContextDelete(fresh);
		st->stale = true;
		return;
	}
	st->spec_cxt = fresh;
	st->spec = *spec;
	if (old != NULL)
		MemoryContextDelete(old);
}

/* all relations whose rows are looked at */
static List *
whole_tree(SyncTable *st)
{
	List	   *tree = find_all_inheritors(st->relid, NoLock, NULL);
	ListCell   *lc;

	foreach(lc, st->spec.relations)
	{
		if (lfirst_oid(lc) != st->relid)
			tree = list_concat_unique_oid(tree, find_all_inheritors(lfirst_oid(lc), NoLock, NULL));
	}
	return tree;
}

/*
 * The tree as it is, watched from before it was read: whatever becomes of a
 * member later marks the table stale.  more: what was watched before still is.
 * Result is in the current context.
 */
static List *
watch_tree(SyncTable *st, List *types, bool more)
{
	List	   *tree;
	List	   *again;

	do
	{
		Oid		   *oids;
		Oid		   *old = st->watched;
		int			n = more ? st->nwatched : 0;
		ListCell   *lc;

		tree = whole_tree(st);
		oids = MemoryContextAlloc(st->cxt, sizeof(Oid) * (n + list_length(tree) + list_length(types)));
		if (n > 0)
			memcpy(oids, old, sizeof(Oid) * n);
		foreach(lc, tree)
			oids[n++] = lfirst_oid(lc);
		foreach(lc, types)
			oids[n++] = lfirst_oid(lc);
		qsort(oids, n, sizeof(Oid), compare_oids);
		st->watched = oids;
		st->nwatched = n;
		if (old != NULL)
			pfree(old);
		again = whole_tree(st);
	} while (!equal(tree, again));
	return tree;
}

static bool
all_watched(const SyncTable *st, List *oids)
{
	ListCell   *lc;

	foreach(lc, oids)
	{
		if (!is_watched(st, lfirst_oid(lc)))
			return false;
	}
	return true;
}

/* takes over a definition: what is at hand was made for the former one */
static void
take_definition(SyncTable *st, MirrorTable *def, MemoryContext cxt)
{
	if (st->def != NULL)
		drop_work(st, false);
	verify_forget(st);			/* its rows are of the old shape */
	plans_forget(st);
	if (st->def_cxt != NULL)
		MemoryContextDelete(st->def_cxt);
	st->def_cxt = cxt;
	st->def = def;
	st->feed_leaves = NIL;
	reader_setup(st);
	st->target_ready = false;
	lanes_setup(st);
}

/* what it looks like now; a change owes a load, and both are noted as one; true: it does */
static bool
take_shape(SyncTable *st, const Shape *shape)
{
	bool		altered = st->shape != NULL && !shape_holds(st, shape);

	if (st->shape != NULL && strcmp(st->shape, shape->text) == 0)
		return false;
	if (st->shape != NULL)
		pfree(st->shape);
	st->shape = MemoryContextStrdup(st->cxt, shape->text);
	st->dirty = true;
	if (!altered || load_is_detached(st))
		return false;
	load_need(st, load_is_rebuild(st) ? "rebuild" : "full",
			  "its columns, partitions, types or triggers were altered");
	return true;
}

static bool
lock_to_look(SyncTable *st)
{
	ListCell   *lc;

	if (!ConditionalLockRelationOid(st->relid, AccessShareLock))
		return false;
	foreach(lc, st->spec.relations)
	{
		if (!ConditionalLockRelationOid(lfirst_oid(lc), AccessShareLock))
			return false;
	}
	return true;
}

/*
 * Looks at a table and what is asked for it.  Errors are returned, palloc'd.
 * st->stale: it could not be looked at, or has changed meanwhile.  A shape
 * whose triggers are to be mended first is not noted, unless it is as_it_is.
 */
static ErrorData *
look_at_table(SyncTable *st, bool as_it_is, Shape *shape, List **key_columns)
{
	MemoryContext oldcxt = CurrentMemoryContext;
	MemoryContext new_cxt;
	ErrorData  *volatile error = NULL;

	new_cxt = AllocSetContextCreate(TopMemoryContext, "crate_sync table definition",
									ALLOCSET_DEFAULT_SIZES);
	memset(shape, 0, sizeof(Shape));
	shape->captured = CAPTURED_WHOLLY;	/* unless it is seen that it is not */
	StartTransactionCommand();
	PG_TRY();
	{
		Relation	rel = NULL;
		MirrorSpec *spec = NULL;

		if (!lock_to_look(st))
			st->stale = true;	/* somebody alters it: later */
		else
		{
			/* invalidations of before are taken in with the lock; later ones count */
			st->stale = false;
			rel = try_relation_open(st->relid, NoLock);
			st->gone = rel == NULL;
		}
		PushActiveSnapshot(GetTransactionSnapshot());
		MemoryContextSwitchTo(new_cxt);
		if (rel != NULL)
			spec = mirror_load_one(st->spec.mirror_id);
		if (spec != NULL && spec->relid == st->relid)
		{
			MirrorTable *def = document_mirror(rel, spec);
			List	   *tree = watch_tree(st, NIL, true);
			List	   *leaves = NIL;
			ListCell   *lc;

			cs_point("in resolve");
			table_shape(st, def, shape);
			if (!all_watched(st, shape->types))
			{
				/* they may have been altered since they were looked at */
				(void) watch_tree(st, shape->types, true);
				PopActiveSnapshot();
				PushActiveSnapshot(GetTransactionSnapshot());
				table_shape(st, def, shape);
			}
			tree = watch_tree(st, shape->types, false);
			st->has_types = shape->has_types;
			st->calls_functions = def->filter_functions != NIL;
			foreach(lc, spec->relations == NIL ? tree : find_all_inheritors(st->relid, NoLock, NULL))
			{
				if (get_rel_relkind(lfirst_oid(lc)) == RELKIND_RELATION)
					leaves = lappend_oid(leaves, lfirst_oid(lc));
			}
			list_sort(leaves, list_oid_cmp);
			*key_columns = NIL;
			MemoryContextSwitchTo(oldcxt);
			foreach(lc, spec->key_columns)
				*key_columns = lappend(*key_columns, pstrdup(lfirst(lc)));
			MemoryContextSwitchTo(new_cxt);

			if (st->def == NULL ||
				strcmp(definition_signature(st->def), definition_signature(def)) != 0)
				take_definition(st, def, new_cxt);
			/* else the old definition stays */
			MemoryContextSwitchTo(st->def_cxt);
			list_free(st->feed_leaves);
			st->feed_leaves = list_copy(leaves);
			take_spec(st, spec);
			MemoryContextSwitchTo(oldcxt);
			code_look(st);
			/* who is not captured has no shape that could be relied on later */
			if ((shape->captured >= (as_it_is ? CAPTURED_PARTLY : CAPTURED_WHOLLY) &&
				 take_shape(st, shape)) ||
				st->load_total < 0 || st->spec.resync_no != st->resync_done ||
				st->spec.verify_no != st->verify_done)
				estimate_rows(st);
		}
		else if (rel != NULL)
			st->stale = true;	/* it is mirrored no more, or anew */
		if (rel != NULL)
			relation_close(rel, NoLock);
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		error = worker_catch(oldcxt);
		st->stale = true;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(oldcxt);
	if (st->def_cxt != new_cxt)
		MemoryContextDelete(new_cxt);
	else if (error != NULL)
		st->def = NULL;			/* half made */
	return error;
}

/*
 * A table that came into the catalog by a dump gets its triggers by it, too:
 * who makes them first has the restore fail.  They are left to it until all
 * sessions of that time are gone, or somebody asks for a resync.
 */
static bool
is_being_restored(SyncTable *st)
{
	Oid			types[1] = {TIMESTAMPTZOID};
	Datum		values[1];
	bool		found;

	if (!st->from_dump)
		return false;
	if (st->restored_seen == 0)
	{
		st->restored_seen = GetCurrentTimestamp();
		st->restored_resync_no = st->spec.resync_no;
	}
	if (st->spec.resync_no != st->restored_resync_no)
		return false;
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	values[0] = TimestampTzGetDatum(st->restored_seen);
	SPI_execute_with_args("SELECT FROM pg_catalog.pg_stat_activity WHERE backend_type = 'client backend' "
						  "AND datname = pg_catalog.current_database() AND backend_start <= $1",
						  1, types, values, NULL, true, 1);
	found = SPI_processed > 0;
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	return found;
}

/* puts triggers back; false: not now */
static bool
mend_triggers(SyncTable *st, List *key_columns)
{
	MemoryContext oldcxt = CurrentMemoryContext;
	volatile bool mended = false;

	StartTransactionCommand();
	PG_TRY();
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		mended = st->def->doc != NULL ? triggers_mend_links(document_triggers(st->def->doc, InvalidOid)) :
			triggers_mend(st->relid, key_columns);
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		ErrorData  *error = worker_catch(oldcxt);

		if (error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
			ereport(LOG,
					(errmsg("crate_sync: triggers of %s.%s cannot be put back: %s",
							st->def->schemaname, st->def->relname, error->message)));
		FreeErrorData(error);
		mended = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(oldcxt);
	return mended;
}

/* takes over a spec and resolves it; errors are the table's trouble */
static void
resolve_table(SyncTable *st)
{
	Shape		shape;
	List	   *key_columns = NIL;
	ErrorData  *error = look_at_table(st, false, &shape, &key_columns);

	if (error == NULL && shape.captured != CAPTURED_WHOLLY)
	{
		if (is_being_restored(st))
		{
			table_trouble(st, "restored",
						  psprintf("%s.%s came with a dump, its triggers have yet to come: they are made when the sessions that may restore it are gone",
								   st->def->schemaname, st->def->relname),
						  psprintf("If the restore is over, SELECT crate_sync.resync(%s); has them made.",
								   quote_literal_cstr(quote_qualified_identifier(st->def->schemaname, st->def->relname))));
			st->stale = true;
			return;
		}
		if (GetCurrentTimestamp() >= st->mend_at && mend_triggers(st, key_columns))
			ereport(LOG,
					(errmsg("crate_sync: triggers of %s.%s were put back",
							st->def->schemaname, st->def->relname)));
		error = look_at_table(st, true, &shape, &key_columns);
	}
	if (error != NULL)
	{
		table_trouble(st, unpack_sql_state(error->sqlerrcode), error->message, error->hint);
		FreeErrorData(error);
		return;
	}
	if (shape.captured == CAPTURED_NOT && st->def != NULL)
	{
		table_trouble(st, "55000",
					  psprintf("changes of %s.%s are not captured: its triggers are missing or disabled",
							   st->def->schemaname, st->def->relname),
					  "They are put back as soon as no writer has the table for a moment.");
		st->stale = true;
	}
	else if (shape.captured == CAPTURED_PARTLY)
	{
		/* rows go on; the rest is tried beside them */
		st->mend_attempts++;
		st->mend_at = backoff(Min(st->mend_attempts + 2, 30));
	}
	else
		st->mend_attempts = 0;
}

/* the table that has the name now by which this one was added, if it is another, and not mirrored itself */
static Oid
name_holder(const MirrorSpec *spec)
{
	Oid			nsp;
	Oid			relid = InvalidOid;

	if (spec->source_name == NULL)
		return InvalidOid;
	StartTransactionCommand();
	nsp = get_namespace_oid(spec->source_schema, true);
	if (OidIsValid(nsp))
		relid = get_relname_relid(spec->source_name, nsp);
	if (OidIsValid(relid) && get_rel_relkind(relid) != RELKIND_RELATION &&
		get_rel_relkind(relid) != RELKIND_PARTITIONED_TABLE)
		relid = InvalidOid;
	CommitTransactionCommand();
	return relid == spec->relid || state_find(relid) != NULL ? InvalidOid : relid;
}

/*
 * Who asked to follow the name gets it: the mirror is handed over to the table
 * that has it now, if it is of the same owner; another could have made it to
 * have his rows pushed there.
 */
static void
follow_name(SyncTable *st, const MirrorSpec *spec)
{
	MemoryContext oldcxt = CurrentMemoryContext;
	ErrorData  *volatile error = NULL;
	Oid			relid;

	if (GetCurrentTimestamp() < st->follow_at)
		return;
	st->follow_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 1000);
	relid = name_holder(spec);
	if (!OidIsValid(relid))
		return;
	StartTransactionCommand();
	PG_TRY();
	{
		MirrorSpec	copy = *spec;
		HeapTuple	tup;
		Oid			owner = InvalidOid;

		PushActiveSnapshot(GetTransactionSnapshot());
		tup = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
		if (HeapTupleIsValid(tup))
		{
			owner = ((Form_pg_class) GETSTRUCT(tup))->relowner;
			ReleaseSysCache(tup);
		}
		if (owner != spec->source_owner)
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("the table that has the name %s.%s now is another owner's",
							spec->source_schema, spec->source_name),
					 errhint("SELECT crate_sync.follow_name(%s); by a superuser has it mirrored.",
							 quote_literal_cstr(quote_qualified_identifier(spec->source_schema, spec->source_name)))));
		if (attach_follow(&copy, relid, false))
		{
			PopActiveSnapshot();
			CommitTransactionCommand();
			ereport(LOG,
					(errmsg("crate_sync: %s.%s is mirrored by its name: relation %u has it now",
							spec->source_schema, spec->source_name, relid)));
			state_changed();
		}
		else
			AbortCurrentTransaction();	/* locked, or changed meanwhile: later */
	}
	PG_CATCH();
	{
		error = worker_catch(oldcxt);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(oldcxt);
	if (error != NULL && error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
		table_trouble(st, unpack_sql_state(error->sqlerrcode), error->message, error->hint);
}

/* has it another name than it was added by? */
static bool
is_renamed(const SyncTable *st, const MirrorSpec *spec)
{
	return st->gone ||
		(st->def != NULL && spec->source_name != NULL &&
		 (strcmp(st->def->relname, spec->source_name) != 0 ||
		  strcmp(st->def->schemaname, spec->source_schema) != 0));
}

/*
 * Takes a table whose relation was dropped out of the catalog.  A row that
 * some open transaction has is not waited for: false, later.
 */
static bool
clean_up_gone(SyncTable *st)
{
	Oid			types[1] = {INT4OID};
	Datum		values[1] = {Int32GetDatum(st->spec.mirror_id)};
	bool		done;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	/* a document's other tables are there still, and have triggers of ours */
	if (!triggers_drop_links(st->spec.relations, psprintf(CS_LINK_TRIGGER "%d_", st->spec.mirror_id), false))
	{
		PopActiveSnapshot();
		AbortCurrentTransaction();
		return false;
	}
	SPI_connect();
	/* its target table stays, and is nobody's from then on */
	SPI_execute_with_args("WITH gone AS (DELETE FROM crate_sync.mirror WHERE mirror_id IN "
						  "(SELECT mirror_id FROM crate_sync.mirror WHERE mirror_id = $1 FOR UPDATE SKIP LOCKED) "
						  "RETURNING target_schema, target_table) "
						  "INSERT INTO crate_sync.removal (target_schema, target_table, drop_target) "
						  "SELECT target_schema, target_table, false FROM gone",
						  1, types, values, NULL, false, 0);
	done = SPI_processed > 0;
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	if (done)
		ereport(LOG,
				(errmsg("crate_sync: table %s.%s (%u) was dropped, it is no longer mirrored",
						st->spec.source_schema ? st->spec.source_schema : "?",
						st->spec.source_name ? st->spec.source_name : "?", st->relid),
				 errhint("Its target table stays; drop it there if it is not wanted.")));
	return done;
}

/*
 * What is left of tables that were removed; and whose the others are, for the
 * day when they are dropped.  What others have locked stays for later.
 */
static void
clean_up_catalog(void)
{
	static const char *const tables[][2] = {
		{"mirror_state", "mirror_id"},
		{"failed", "failed_id"},
		{"difference", "difference_id"},
	};

	SPI_connect();
	for (int i = 0; i < lengthof(tables); i++)
		SPI_execute(psprintf("DELETE FROM crate_sync.%s WHERE %s IN (SELECT %s FROM crate_sync.%s s "
							 "WHERE NOT EXISTS (SELECT FROM crate_sync.mirror m WHERE m.mirror_id = s.mirror_id) "
							 "FOR UPDATE SKIP LOCKED)",
							 tables[i][0], tables[i][1], tables[i][1], tables[i][0]), false, 0);
	SPI_execute("UPDATE crate_sync.mirror m SET source_owner = c.relowner FROM pg_catalog.pg_class c "
				"WHERE c.oid = m.relid AND m.mirror_id IN (SELECT o.mirror_id FROM crate_sync.mirror o "
				"JOIN pg_catalog.pg_class p ON p.oid = o.relid "
				"WHERE o.source_owner IS DISTINCT FROM p.relowner FOR NO KEY UPDATE OF o SKIP LOCKED)", false, 0);
	SPI_finish();
}

/* next: a transaction id not yet given out when the snapshot was taken, or later */
static FullTransactionId
full_xid(TransactionId xid, FullTransactionId next)
{
	return FullTransactionIdFromU64(U64FromFullTransactionId(next) -
									(uint32) (XidFromFullTransactionId(next) - xid));
}

static void
keep_reload_snapshot(Snapshot snapshot)
{
	FullTransactionId next = ReadNextFullTransactionId();

	reload_snapshot.complete = false;
	if (reload_snapshot.running != NULL)
		pfree(reload_snapshot.running);
	reload_snapshot.nrunning = snapshot->xcnt;
	reload_snapshot.running = MemoryContextAlloc(TopMemoryContext,
												 sizeof(TransactionId) * (snapshot->xcnt + 1));
	if (snapshot->xcnt > 0)
		memcpy(reload_snapshot.running, snapshot->xip, sizeof(TransactionId) * snapshot->xcnt);
	reload_snapshot.xmin = full_xid(snapshot->xmin, next);
	reload_snapshot.xmax = full_xid(snapshot->xmax, next);
}

/*
 * Was the topmost transaction over, and seen so by the snapshot that the tables
 * were read in?  Then a chunk of its whose table is not among them is of no
 * mirrored table.  XidInMVCCSnapshot() would not do: a chunk can be held for
 * longer than 32 bits of a transaction id last.
 */
bool
state_reload_saw(FullTransactionId xid)
{
	if (!reload_snapshot.complete || !FullTransactionIdPrecedes(xid, reload_snapshot.xmax))
		return false;
	if (FullTransactionIdPrecedes(xid, reload_snapshot.xmin))
		return true;
	for (int i = 0; i < reload_snapshot.nrunning; i++)
	{
		if (reload_snapshot.running[i] == XidFromFullTransactionId(xid))
			return false;
	}
	return true;
}

void
state_reload(void)
{
	MemoryContext cxt = AllocSetContextCreate(TopMemoryContext, "crate_sync reload",
											  ALLOCSET_DEFAULT_SIZES);
	MemoryContext oldcxt = MemoryContextSwitchTo(cxt);
	List	   *specs;
	ListCell   *lc;
	dlist_mutable_iter it;

	StartTransactionCommand();
	catalog_stale = false;
	PushActiveSnapshot(GetTransactionSnapshot());
	state_catalog_relid = get_relname_relid("mirror", get_namespace_oid(CS_SCHEMA, true));
	MemoryContextSwitchTo(cxt);
	keep_reload_snapshot(GetActiveSnapshot());
	specs = OidIsValid(state_catalog_relid) ? mirror_load(InvalidOid) : NIL;
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(cxt);

	/* those that are gone first: a table may have been removed and added anew */
	dlist_foreach_modify(it, &sync_tables)
	{
		SyncTable  *st = dlist_container(SyncTable, node, it.cur);
		MirrorSpec *found = NULL;

		foreach(lc, specs)
		{
			if (((MirrorSpec *) lfirst(lc))->mirror_id == st->spec.mirror_id)
				found = lfirst(lc);
		}
		if (found == NULL || found->relid != st->relid)
			forget_table(st);
	}
	foreach(lc, specs)
	{
		MirrorSpec *spec = lfirst(lc);
		SyncTable  *st = NULL;

		dlist_foreach_modify(it, &sync_tables)
		{
			if (dlist_container(SyncTable, node, it.cur)->spec.mirror_id == spec->mirror_id)
				st = dlist_container(SyncTable, node, it.cur);
		}
		if (st == NULL)
		{
			st = create_table(spec);
			StartTransactionCommand();
			PushActiveSnapshot(GetTransactionSnapshot());
			read_durable(st);
			leave_out(st);
			PopActiveSnapshot();
			CommitTransactionCommand();
			MemoryContextSwitchTo(cxt);
		}
		else if (spec->resync_no != st->spec.resync_no || spec->paused != st->spec.paused ||
				 spec->verify_no != st->spec.verify_no || spec->follow_name != st->spec.follow_name)
		{
			st->stale = true;
			st->error_retry_at = code_retry_at(st);
		}
		if (st->mend_attempts > 0 && GetCurrentTimestamp() >= st->mend_at)
			st->stale = true;
		if (st->stale && !(st->in_error && GetCurrentTimestamp() < st->error_retry_at))
		{
			resolve_table(st);
			MemoryContextSwitchTo(cxt);
		}
		if (spec->follow_name && is_renamed(st, spec))
			follow_name(st, spec);
		/* where another has its name, that is for the user to settle: see the view status */
		else if (st->gone && !OidIsValid(name_holder(spec)))
			(void) clean_up_gone(st);
		MemoryContextSwitchTo(cxt);
		if (st->gone)
			drop_work(st, false);	/* nobody reads its rows any more */
		if (st->stale || st->gone || st->mend_attempts > 0 ||
			(spec->follow_name && is_renamed(st, spec)))
		{
			/* locked, or in trouble: look again */
			catalog_stale = true;
			next_reload = GetCurrentTimestamp() + 200 * INT64CONST(1000);
		}
	}

	/* what is left of tables that were removed */
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (OidIsValid(state_catalog_relid))
		clean_up_catalog();
	PopActiveSnapshot();
	CommitTransactionCommand();

	/* an error on the way here leaves tables out, which are mirrored all the same */
	reload_snapshot.complete = OidIsValid(state_catalog_relid);
	MemoryContextSwitchTo(oldcxt);
	MemoryContextDelete(cxt);
}

void
state_hold_work(SyncTable *st)
{
	drop_work(st, true);
}

void
state_forget_work(SyncTable *st)
{
	drop_work(st, false);
}

void
state_drop_all_work(void)
{
	dlist_iter	it;

	dlist_foreach(it, &sync_tables)
		drop_work(dlist_container(SyncTable, node, it.cur), false);
}

/* ---------------------------------------------------------------------
 * Acknowledgements
 * ------------------------------------------------------------------- */

bool
state_ack_due(void)
{
	dlist_iter	it;

	if (done_passes > 0 || feed_held() != NIL || dropped_chunks != NIL)
		return true;
	dlist_foreach(it, &sync_tables)
	{
		SyncTable  *st = dlist_container(SyncTable, node, it.cur);

		if ((st->urgent && st->state_known) || st->parked != NIL || st->error_changed || st->verify_changed || st->load_finished)
			return true;
	}
	return false;
}

static const char *
state_name(const SyncTable *st)
{
	if (st->in_error || st->error_message != NULL)
		return "error";
	switch (st->phase)
	{
		case LOAD_ROWS:
			return "loading";
		case LOAD_SWEEP:
			return "sweeping";
		case LOAD_VERIFY:
			return "verifying";
		case LOAD_NONE:
			break;
	}
	if (!st->target_ready && st->resync_done < 0)
		return "new";
	if (st->load_mode != NULL && strcmp(st->load_mode, "cancelled") == 0)
		return "incomplete";
	if (load_is_detached(st))
		return "detached";
	return "ready";
}

static void
write_failed(SyncTable *st)
{
	ListCell   *lc;
	bool		come = false;
	Oid			types[8] = {INT4OID, TEXTOID, JSONBOID, BYTEAOID, INT4OID, TEXTOID, TEXTOID, TEXTOID};

	/* is any left?  Not if some come now */
	foreach(lc, st->parked)
		come |= ((ParkedRow *) lfirst(lc))->action != NULL;
	if (st->failed_all && !come)
	{
		Datum		mirror_id = Int32GetDatum(st->spec.mirror_id);

		SPI_execute_with_args("SELECT FROM crate_sync.failed WHERE mirror_id = $1",
							  1, types, &mirror_id, NULL, false, 1);
		if (SPI_processed == 0)
			failed_none(st);
	}
	foreach(lc, st->parked)
	{
		ParkedRow  *row = lfirst(lc);
		Datum		values[8];
		bytea	   *packed;

		values[0] = Int32GetDatum(st->spec.mirror_id);
		values[1] = CStringGetTextDatum(row->target_key);
		if (row->action == NULL)
		{
			/* arrived; a row that the user holds locked is left to him */
			SPI_execute_with_args("DELETE FROM crate_sync.failed WHERE failed_id IN "
								  "(SELECT failed_id FROM crate_sync.failed WHERE mirror_id = $1 AND "
								  "pg_catalog.md5(target_key) = pg_catalog.md5($2) AND target_key = $2 "
								  "FOR UPDATE SKIP LOCKED)",
								  2, types, values, NULL, false, 0);
			continue;
		}
		packed = palloc(VARHDRSZ + row->packed_len);
		SET_VARSIZE(packed, VARHDRSZ + row->packed_len);
		memcpy(VARDATA(packed), row->packed, row->packed_len);
		values[2] = reader_cells_to_jsonb(st, row->target_key);
		values[3] = PointerGetDatum(packed);
		values[4] = Int32GetDatum(st->layout.id);
		values[5] = CStringGetTextDatum(row->action);
		values[6] = CStringGetTextDatum(row->code);
		values[7] = CStringGetTextDatum(row->message);
		SPI_execute_with_args("UPDATE crate_sync.failed SET action = $6, error_code = $7, error_message = $8, "
							  "packed_key = $4, layout = $5, "
							  "attempts = attempts + 1, last_failed_time = pg_catalog.clock_timestamp() "
							  "WHERE failed_id IN (SELECT failed_id FROM crate_sync.failed WHERE mirror_id = $1 AND "
							  "pg_catalog.md5(target_key) = pg_catalog.md5($2) AND target_key = $2 "
							  "AND $3 IS NOT NULL FOR UPDATE SKIP LOCKED)",
							  8, types, values, NULL, false, 0);
		if (SPI_processed == 0)
			SPI_execute_with_args("INSERT INTO crate_sync.failed (mirror_id, target_key, key, packed_key, layout, "
								  "action, error_code, error_message) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
								  8, types, values, NULL, false, 0);
	}
}

/* what is written down of a table, in the order of state_values(); $ is the value */
static const struct
{
	const char *assignment;
	Oid			type;
}			state_columns[] =
{
	{"state = $", TEXTOID},
	{"shape = $", TEXTOID},
	{"resync_done = $", INT4OID},
	{"load_mode = $", TEXTOID},
	{"load_phase = $", TEXTOID},
	{"load_rel = $", OIDOID},
	{"load_filenode = $", OIDOID},
	{"load_block = $", INT8OID},
	{"load_rows = $", INT8OID},
	{"load_total = $", INT8OID},
	{"load_bytes = $", INT8OID},
	{"load_start = $", TIMESTAMPTZOID},
	{"sweep_key = $", TEXTOID},
	{"verify_done = $", INT4OID},
	{"claimed = $", BOOLOID},
	{"lanes_used = $", INT4OID},
	{"hint = $", TEXTOID},
	{"due = $", TEXTOID},
	{"due_again = $", BOOLOID},
	{"n_differences = $", INT8OID},
	{"target_id = $", TEXTOID},
	/* counted since the last time */
	{"n_tup_upserted = n_tup_upserted + $", INT8OID},
	{"n_tup_deleted = n_tup_deleted + $", INT8OID},
	{"n_tup_failed = n_tup_failed + $", INT8OID},
	{"requests = requests + $", INT8OID},
	{"retries = retries + $", INT8OID},
	{"bytes_sent = bytes_sent + $", INT8OID},
	{"request_time = request_time + $", FLOAT8OID},
	/* what stays if nothing new is to be said */
	{"last_ack_time = coalesce($, last_ack_time)", TIMESTAMPTZOID},
	{"last_load_time = nullif(coalesce($, last_load_time), '-infinity')", TIMESTAMPTZOID},
	{"last_verify_time = coalesce($, last_verify_time)", TIMESTAMPTZOID},
	{"last_verify_ok = coalesce($, last_verify_ok)", BOOLOID},
	{"last_error = coalesce($, last_error)", TEXTOID},
	{"last_error_code = coalesce($, last_error_code)", TEXTOID},
	{"last_error_time = coalesce($, last_error_time)", TIMESTAMPTZOID},
};

#define STATE_PARAMS (lengthof(state_columns) + 1)	/* the last one: mirror_id */

typedef struct StateValues
{
	int			n;
	Datum		values[STATE_PARAMS];
	char		nulls[STATE_PARAMS + 1];
} StateValues;

static void
put_value(StateValues *v, Datum value, bool isnull)
{
	v->values[v->n] = value;
	v->nulls[v->n++] = isnull ? 'n' : ' ';
}

static void
put_text(StateValues *v, const char *text)
{
	put_value(v, text ? CStringGetTextDatum(text) : (Datum) 0, text == NULL);
}

static void
put_time(StateValues *v, TimestampTz time)
{
	put_value(v, TimestampTzGetDatum(time), time == 0);
}

static void
state_values(SyncTable *st, StateValues *v)
{
	const char *phase = st->phase == LOAD_ROWS ? "load" : st->phase == LOAD_SWEEP ? "sweep" :
		st->phase == LOAD_VERIFY ? "verify" : NULL;
	bool		error = st->error_changed && st->error_message != NULL;
	TimestampTz now = GetCurrentTimestamp();

	v->n = 0;
	put_text(v, state_name(st));
	put_text(v, st->shape);
	put_value(v, Int32GetDatum(st->resync_done), false);
	put_text(v, st->load_mode);
	put_text(v, phase);
	put_value(v, ObjectIdGetDatum(st->load_rel), false);
	put_value(v, ObjectIdGetDatum(st->load_filenode), false);
	put_value(v, Int64GetDatum(st->load_pos), false);
	put_value(v, Int64GetDatum(st->load_rows), false);
	put_value(v, Int64GetDatum(Max(st->load_total, st->load_rows)), false);
	put_value(v, Int64GetDatum(st->load_bytes), false);
	put_time(v, st->load_start);
	put_text(v, st->sweep_key);
	put_value(v, Int32GetDatum(st->verify_done), false);
	put_value(v, BoolGetDatum(st->claimed), false);
	put_value(v, Int32GetDatum(st->lanes_used), false);
	put_text(v, st->error_message ? st->error_hint : NULL);
	put_text(v, st->due);
	put_value(v, BoolGetDatum(st->due_again), false);
	put_value(v, Int64GetDatum(st->n_differences), st->n_differences < 0);
	put_text(v, st->target_id);
	put_value(v, Int64GetDatum(st->n_upserted), false);
	put_value(v, Int64GetDatum(st->n_deleted), false);
	put_value(v, Int64GetDatum(st->n_failed), false);
	put_value(v, Int64GetDatum(st->n_requests), false);
	put_value(v, Int64GetDatum(st->n_retries), false);
	put_value(v, Int64GetDatum(st->n_bytes), false);
	put_value(v, Float8GetDatum(st->request_time), false);
	put_time(v, st->last_ack);
	put_time(v, st->load_finished ? now : st->loaded_once ? 0 : DT_NOBEGIN);
	put_time(v, st->verify_finished ? now : 0);
	put_value(v, BoolGetDatum(st->verify_ok), !st->verify_finished);
	put_text(v, error ? st->error_message : NULL);
	put_text(v, error ? st->error_code : NULL);
	put_time(v, error ? now : 0);
	put_value(v, Int32GetDatum(st->spec.mirror_id), false);
	Assert(v->n == STATE_PARAMS);
}

static void
write_state(SyncTable *st)
{
	static SPIPlanPtr plan = NULL;
	StateValues v;

	if (plan == NULL)
	{
		StringInfoData sql;
		Oid			types[STATE_PARAMS];

		initStringInfo(&sql);
		appendStringInfoString(&sql, "UPDATE crate_sync.mirror_state SET ");
		for (int i = 0; i < lengthof(state_columns); i++)
		{
			const char *dollar = strchr(state_columns[i].assignment, '$');

			appendStringInfo(&sql, "%s%.*s$%d%s", i ? ", " : "",
							 (int) (dollar - state_columns[i].assignment),
							 state_columns[i].assignment, i + 1, dollar + 1);
			types[i] = state_columns[i].type;
		}
		types[STATE_PARAMS - 1] = INT4OID;
		appendStringInfo(&sql, " WHERE mirror_id = $%d", (int) STATE_PARAMS);
		plan = SPI_prepare(sql.data, STATE_PARAMS, types);
		if (plan == NULL)
			elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
		SPI_keepplan(plan);
	}
	state_values(st, &v);
	if (SPI_execute_plan(plan, v.values, v.nulls, false, 0) < 0)
		elog(ERROR, "SPI_execute_plan failed");
}

static void
written(SyncTable *st)
{
	ListCell   *lc;

	st->n_upserted = st->n_deleted = st->n_failed = 0;
	st->n_requests = st->n_retries = st->n_bytes = 0;
	st->request_time = 0;
	st->load_finished = false;
	st->verify_changed = false;
	st->verify_finished = false;
	st->error_changed = false;
	st->dirty = false;
	st->urgent = false;
	foreach(lc, st->parked)
	{
		ParkedRow  *row = lfirst(lc);

		pfree(row->target_key);
		if (row->packed != NULL)
			pfree(row->packed);
		if (row->message != NULL)
			pfree(row->message);
		pfree(row);
	}
	list_free(st->parked);
	st->parked = NIL;
}

void
state_ack(bool sure)
{
	dlist_iter	it;
	MemoryContext oldcxt = CurrentMemoryContext;
	ErrorData  *volatile error = NULL;
	ListCell   *lc;

	cs_point("before ack");
	dlist_foreach(it, &sync_tables)
	{
		dlist_iter	p;

		dlist_foreach(p, &dlist_container(SyncTable, node, it.cur)->passes)
		{
			foreach(lc, dlist_container(Pass, node, p.cur)->chunks)
				feed_ack_begin(lfirst(lc));
		}
	}
	StartTransactionCommand();
	PG_TRY();
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		SPI_connect();
		foreach(lc, feed_held())
			queue_hold(lfirst(lc));
		foreach(lc, dropped_chunks)
			queue_delete(lfirst(lc));
		dlist_foreach(it, &sync_tables)
		{
			SyncTable  *st = dlist_container(SyncTable, node, it.cur);
			bool		in_order = true;
			dlist_iter	p;

			if (!st->state_known)
				continue;
			if (st->parked != NIL)
				write_failed(st);
			dlist_foreach(p, &st->passes)
			{
				Pass	   *pass = dlist_container(Pass, node, p.cur);
				ListCell   *c;

				if (pass->kind != PASS_QUEUE)
				{
					in_order &= pass->done;
					if (in_order && !pass->applied)
					{
						pass->applied = true;
						load_pass_done(st, pass);
					}
					continue;
				}
				if (!pass->done)
					continue;
				foreach(c, pass->chunks)
					feed_ack(lfirst(c));
				pass->applied = true;
				st->last_ack = GetCurrentTimestamp();
				st->dirty = true;
			}
			if (st->dirty || st->urgent)
				write_state(st);
		}
		/* a commit that has written nothing would flush nothing of those before */
		if (sure)
			(void) GetCurrentTransactionId();
		SPI_finish();
		PopActiveSnapshot();
		if (sure)
			ForceSyncCommit();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		error = worker_catch(oldcxt);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(oldcxt);
	queue_end_xact(error == NULL);
	if (error != NULL)
	{
		ThrowErrorData(error);	/* the main loop's: it says so and starts over */
		return;
	}

	feed_held_reset();
	dropped_chunks = NIL;
	if (dropped_cxt != NULL)
		MemoryContextReset(dropped_cxt);
	dlist_foreach(it, &sync_tables)
	{
		SyncTable  *st = dlist_container(SyncTable, node, it.cur);
		dlist_mutable_iter p;

		if (!st->state_known)
			continue;
		dlist_foreach_modify(p, &st->passes)
		{
			Pass	   *pass = dlist_container(Pass, node, p.cur);

			if (!pass->applied)
				continue;
			foreach(lc, pass->chunks)
				feed_acked(lfirst(lc));
			pass_free(pass);
		}
		written(st);
	}
	live_note_ack();
	cs_point("after ack");
}
