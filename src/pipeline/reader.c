/*-------------------------------------------------------------------------
 *
 * reader.c
 *		From keys, or a piece of a table, to rows in open batches.
 *
 * Each read is one short transaction with one snapshot and one query, run as
 * the table's owner in a security-restricted operation.  Rows are encoded
 * straight from the executor's slot.  Before any of it can be sent, WAL is
 * flushed as far as the snapshot saw: what a crash could still undo in the
 * source must not be in the target.
 *
 * The queue names keys, the table says what is true of them: a key whose row
 * is there is an upsert, one whose row is not (or does not pass the filter,
 * or is marked deleted) is a delete.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "base/bounded.h"
#include "base/point.h"
#include "base/session.h"
#include "base/text.h"
#include "catalog/namespace.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "document/document.h"
#include "executor/executor.h"
#include "mb/pg_wchar.h"
#include "pipeline/code.h"
#include "pipeline/keymap.h"
#include "pipeline/plans.h"
#include "pipeline/table.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "tcop/dest.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

/* a query asks for that many keys at most */
#define READ_KEYS 20000

/*
 * Reads of one row that took too long (see bounded.c), after which it is
 * parked, if it may be to blame; so many of these in a row, without one that
 * was read, and the table is stopped.  Where it is not the rows, so many reads.
 */
#define ROW_TIMEOUTS	3
#define ROWS_TIMED_OUT	8
#define READ_TIMEOUTS	8


/* who has a partition locked is not waited for longer (ms): others' rows wait meanwhile */
#define READ_LOCK_TIMEOUT 20

/* keys of the target that a type of users' refuses at a page's beginning, and the table is stopped */
#define REFUSED_KEYS	100

/* ---------------------------------------------------------------------
 * Keys in their three forms: source values, target cells, packed
 * ------------------------------------------------------------------- */

/* cuts "5,\"a,b\"" into cells; returns how many there are, at most max */
static int	split_cells(const char *target_key, const char **cell, int *len, int max);

/* adds a row of key cells */
void
reader_add_key_row(SyncTable *st, RowSet *rs, const char *target_key)
{
	const char *cell[INDEX_MAX_KEYS];
	int			len[INDEX_MAX_KEYS];
	int			n = split_cells(target_key, cell, len, INDEX_MAX_KEYS);

	for (int k = 0; k < st->def->nkeys; k++)
		appendBinaryStringInfo(rowset_cell(rs, k), k < n ? cell[k] : "null", k < n ? len[k] : 4);
	rowset_end_row(rs);
}

/* one row of key cells, as Target.page wants them */
RowSet *
reader_key_rowset(SyncTable *st, const char *target_key)
{
	RowSet	   *rs = rowset_create(CurrentMemoryContext, st->def->nkeys);

	reader_add_key_row(st, rs, target_key);
	return rs;
}

/*
 * Appends a key's cell.  Text that UTF-8 cannot say, which only a database of
 * another encoding has, becomes an object with its bytes: it tells keys
 * apart, shows in failed_rows, and is no key of the target.  False then.
 */
static bool
append_key_cell(StringInfo buf, Datum value, CellEncoder *enc)
{
	MemoryContext oldcxt = CurrentMemoryContext;
	int			start = buf->len;
	volatile bool ok = true;

	if (likely(GetDatabaseEncoding() == PG_UTF8))
	{
		enc->encode(buf, value, enc);
		return true;
	}
	PG_TRY();
	{
		enc->encode(buf, value, enc);
	}
	PG_CATCH();
	{
		/* a conversion has nothing to be undone but memory */
		if (geterrcode() != ERRCODE_CHARACTER_NOT_IN_REPERTOIRE &&
			geterrcode() != ERRCODE_UNTRANSLATABLE_CHARACTER)
			PG_RE_THROW();
		MemoryContextSwitchTo(oldcxt);
		FlushErrorState();
		ok = false;
	}
	PG_END_TRY();
	if (!ok)
	{
		Oid			outfunc;
		bool		isvarlena;
		char	   *text;

		getTypeOutputInfo(enc->typid, &outfunc, &isvarlena);
		text = OidOutputFunctionCall(outfunc, value);
		buf->len = start;
		appendStringInfoString(buf, "{\"bytes\":\"");
		for (const char *p = text; *p; p++)
			appendStringInfo(buf, "%02x", (unsigned char) *p);
		appendStringInfoString(buf, "\"}");
		pfree(text);
	}
	return ok;
}

bool
reader_key_cells(SyncTable *st, const Datum *values, StringInfo buf)
{
	bool		ok = true;

	for (int k = 0; k < st->def->nkeys; k++)
	{
		if (k > 0)
			appendStringInfoChar(buf, ',');
		ok &= append_key_cell(buf, values[k], &st->encoders[st->def->keys[k]]);
	}
	return ok;
}

/* a JSON scalar's text in the server's encoding: a string without its quotes, anything else as it is */
static char *
cell_text(const char *cell, int len)
{
	Jsonb	   *jb;
	JsonbValue	v;
	char	   *text;

	if (len == 0 || cell[0] != '"')
		return pnstrdup(cell, len);
	text = pnstrdup(cell, len);
	jb = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
											CStringGetDatum(pg_any_to_server(text, len, PG_UTF8))));
	pfree(text);
	if (!JB_ROOT_IS_SCALAR(jb) || !JsonbExtractScalar(&jb->root, &v) || v.type != jbvString)
		return pnstrdup(cell, len);
	return pnstrdup(v.val.string.val, v.val.string.len);
}

/*
 * The type of a key's values, domains looked through: their checks are code
 * of users', and a value that they refuse is found nowhere in the source.
 */
static Oid
key_type(SyncTable *st, int keyno, int32 *typmod)
{
	const MirrorColumn *col = &st->def->columns[st->def->keys[keyno]];

	*typmod = col->typmod;
	return getBaseTypeAndTypmod(col->typid, typmod);
}

static Datum
cell_to_datum(SyncTable *st, int keyno, const char *cell, int len)
{
	int32		typmod;
	Oid			typid = key_type(st, keyno, &typmod);
	Oid			infunc;
	Oid			ioparam;
	char	   *text = cell_text(cell, len);

	if (typid == BOOLOID && len > 0 && cell[0] != '"')
		return BoolGetDatum(cell[0] == 't');
	getTypeInputInfo(typid, &infunc, &ioparam);
	return OidInputFunctionCall(infunc, text, ioparam, typmod);
}

/* may reading a key's cells run code of users'? */
static bool
key_runs_code(SyncTable *st)
{
	int32		typmod;

	for (int k = 0; k < st->def->nkeys; k++)
	{
		if (mirror_input_runs_code(key_type(st, k, &typmod)))
			return true;
	}
	return false;
}

/* took it too long, or more than there is? */
static bool
is_want_of_means(int sqlerrcode)
{
	int			category = ERRCODE_TO_CATEGORY(sqlerrcode);

	return category == ERRCODE_INSUFFICIENT_RESOURCES || category == ERRCODE_OPERATOR_INTERVENTION;
}

/* the same for keys of which it may: as the table's owner, errors undone */
static bool
cells_to_datums_as_owner(SyncTable *st, const char *const *cell, const int *len, Datum *values,
						 char **reason)
{
	MemoryContext oldcxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool ok = false;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(oldcxt);
	PG_TRY();
	{
		Elevation	e;

		XactReadOnly = true;	/* as long as the subtransaction */
		PushActiveSnapshot(GetTransactionSnapshot());
		become_owner(&e, st->def->owner);
		for (int k = 0; k < st->def->nkeys; k++)
			values[k] = cell_to_datum(st, k, cell[k], len[k]);
		be_oneself(&e);
		PopActiveSnapshot();
		ReleaseCurrentSubTransaction();
		ok = true;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(oldcxt);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		if (is_want_of_means(error->sqlerrcode))
			ReThrowError(error);
		*reason = pstrdup(error->message);
		FreeErrorData(error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(oldcxt);
	CurrentResourceOwner = owner;
	return ok;
}

/* a key's values from its cells; false if they are none of the source's types */
static bool
cells_to_datums(SyncTable *st, const char *const *cell, const int *len, Datum *values,
				char **reason)
{
	MemoryContext oldcxt = CurrentMemoryContext;
	volatile bool ok = true;

	*reason = NULL;
	/* an object stands for what is no key of a source: see append_key_cell(), and the targets */
	for (int k = 0; k < st->def->nkeys; k++)
	{
		if (len[k] > 0 && cell[k][0] == '{')
			return false;
	}
	if (st->key_runs_code)
		return cells_to_datums_as_owner(st, cell, len, values, reason);

	/*
	 * Input functions may throw at what somebody put into the target; this
	 * runs in a subtransaction's stead: nothing they do has to be undone but
	 * memory, since they only parse.
	 */
	PG_TRY();
	{
		for (int k = 0; k < st->def->nkeys; k++)
			values[k] = cell_to_datum(st, k, cell[k], len[k]);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(oldcxt);
		FlushErrorState();
		ok = false;
	}
	PG_END_TRY();
	return ok;
}

void
reader_begin_cells(SyncTable *st)
{
	if (st->key_runs_code)
		bounded_begin(st->relid, st->def->owner, true, false);
}

void
reader_end_cells(void)
{
	bounded_end();
}

bool
reader_key_from_cells(SyncTable *st, const RowSet *rows, int row, Datum *values, char **reason)
{
	const char *cell[INDEX_MAX_KEYS];
	int			len[INDEX_MAX_KEYS];

	for (int k = 0; k < st->def->nkeys; k++)
		cell[k] = rowset_get(rows, row, k, &len[k]);
	return cells_to_datums(st, cell, len, values, reason);
}

static int
split_cells(const char *target_key, const char **cell, int *len, int max)
{
	int			n = 0;
	const char *p = target_key;
	const char *start = p;
	bool		quoted = false;

	for (;; p++)
	{
		if (*p == '\0' || (*p == ',' && !quoted))
		{
			if (n < max)
			{
				cell[n] = start;
				len[n] = p - start;
				n++;
			}
			if (*p == '\0')
				return n;
			start = p + 1;
		}
		else if (*p == '\\' && quoted && p[1] != '\0')
			p++;
		else if (*p == '"')
			quoted = !quoted;
	}
}

static Datum
cells_to_jsonb(SyncTable *st, const char *target_key)
{
	const char *cell[INDEX_MAX_KEYS];
	int			len[INDEX_MAX_KEYS];
	int			n = split_cells(target_key, cell, len, INDEX_MAX_KEYS);
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	for (int k = 0; k < n && k < st->def->nkeys; k++)
	{
		if (k > 0)
			appendStringInfoChar(&buf, ',');
		types_json_string(&buf, st->def->columns[st->def->keys[k]].name,
						  strlen(st->def->columns[st->def->keys[k]].name));
		appendStringInfoChar(&buf, ':');
		appendBinaryStringInfo(&buf, cell[k], len[k]);
	}
	appendStringInfoChar(&buf, '}');
	return DirectFunctionCall1(jsonb_in,
							   CStringGetDatum(pg_any_to_server(buf.data, buf.len, PG_UTF8)));
}

/*
 * A key for people to read.  Others can put one into the target that this
 * database's encoding, or its JSON, cannot say: then it is a string of what
 * can be said of it.
 */
Datum
reader_cells_to_jsonb(SyncTable *st, const char *target_key)
{
	MemoryContext oldcxt = CurrentMemoryContext;
	volatile Datum result = (Datum) 0;
	StringInfoData buf;
	char	   *clean;

	PG_TRY();
	{
		/* it only parses: there is nothing to undo but memory */
		result = cells_to_jsonb(st, target_key);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(oldcxt);
		FlushErrorState();
	}
	PG_END_TRY();
	if (result != (Datum) 0)
		return result;
	initStringInfo(&buf);
	clean = target_clean_text(target_key, strlen(target_key));
	types_json_string(&buf, clean, strlen(clean));
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(buf.data));
}

/*
 * The key as the queue would hold it, so that it can be queued again; empty
 * if the cells are no values of the source's types.  Called outside of
 * transactions.
 */
char *
reader_pack_cells(SyncTable *st, const char *target_key, int *len)
{
	const char *cell[INDEX_MAX_KEYS];
	int			celllen[INDEX_MAX_KEYS];
	Datum		values[INDEX_MAX_KEYS];
	int			n = split_cells(target_key, cell, celllen, INDEX_MAX_KEYS);
	MemoryContext oldcxt = CurrentMemoryContext;
	StringInfoData buf;
	char	   *reason;

	initStringInfo(&buf);
	if (n == st->def->nkeys && (!st->key_runs_code || code_retry_at(st) == 0))
	{
		StartTransactionCommand();
		PG_TRY();
		{
			reader_begin_cells(st);
			if (!cells_to_datums(st, cell, celllen, values, &reason) ||
				!key_pack_alone(&st->layout, &buf, values))
				resetStringInfo(&buf);
			reader_end_cells();
			CommitTransactionCommand();
		}
		PG_CATCH();
		{
			FreeErrorData(worker_catch(oldcxt));
			resetStringInfo(&buf);
		}
		PG_END_TRY();
	}
	MemoryContextSwitchTo(oldcxt);
	*len = buf.len;
	return buf.data;
}

/* ---------------------------------------------------------------------
 * Set-up
 * ------------------------------------------------------------------- */

/* may it be a row's own fault that reading it takes long? */
static bool
rows_run_code(const SyncTable *st)
{
	return st->rows_run_code || st->def->row_filter != NULL || st->spec.resync_filter != NULL;
}

/* st->def is new: what belongs to it, in st->def_cxt */
void
reader_setup(SyncTable *st)
{
	MirrorTable *def = st->def;
	MemoryContext oldcxt = MemoryContextSwitchTo(st->def_cxt);
	char	   *names[INDEX_MAX_KEYS];
	Relation	rel;

	plans_forget(st);
	st->encoders = palloc0(sizeof(CellEncoder) * def->ncols);
	for (int i = 0; i < def->ncols; i++)
	{
		if (def->columns[i].node != NULL)
			document_encoder(def->columns[i].node, &st->encoders[i]);
		else
			types_encoder(def->columns[i].typid, def->columns[i].typmod,
						  &def->columns[i].map, &st->encoders[i]);
	}
	for (int k = 0; k < def->nkeys; k++)
		names[k] = def->columns[def->keys[k]].name;
	rel = relation_open(st->relid, AccessShareLock);
	if (!key_layout(RelationGetDescr(rel), def->nkeys, names, &st->layout))
		elog(ERROR, "the key of %s cannot be packed", def->relname);
	relation_close(rel, AccessShareLock);
	keyset_setup(st);
	st->key_runs_code = key_runs_code(st);
	MemoryContextSwitchTo(oldcxt);
}

/* ---------------------------------------------------------------------
 * From slot to batch
 * ------------------------------------------------------------------- */

typedef struct RowReceiver
{
	DestReceiver pub;
	SyncTable  *st;
	Pass	   *pass;			/* NULL: nothing goes into lanes */
	RowSet	   *rows;			/* rows go here, or NULL: into lanes */
	int			max_rows;
	Size		max_bytes;
	KeySet	   *keys;			/* to settle, or NULL */
	bool		exists_only;	/* settle only, the slot has key columns only */
	bool		alone;			/* one row is asked for */
	bool		has_tid;		/* the slot's last column is the ctid */
	MemoryContext row_cxt;
	StringInfoData key;
	int			keyend[INDEX_MAX_KEYS];
	uint64		hash;			/* of key */
	RowSet	   *filling;		/* a row is half written here */
	int64		n;
	ItemPointerData last_tid;
	bool		stopped;		/* for want of memory */
} RowReceiver;

static RowReceiver receiver;

/* false: the target cannot be told this key, see append_key_cell */
static bool
encode_key(RowReceiver *r, const Datum *values, const int *places)
{
	MirrorTable *def = r->st->def;
	bool		ok = true;

	resetStringInfo(&r->key);
	for (int k = 0; k < def->nkeys; k++)
	{
		if (k > 0)
			appendStringInfoChar(&r->key, ',');
		ok &= append_key_cell(&r->key, values[places ? places[k] : k],
							  &r->st->encoders[def->keys[k]]);
		r->keyend[k] = r->key.len;
	}
	r->hash = key_hash(r->key.data, r->key.len);
	return ok;
}

static inline void
key_cell(const RowReceiver *r, int k, StringInfo to)
{
	int			start = k > 0 ? r->keyend[k - 1] + 1 : 0;

	appendBinaryStringInfo(to, r->key.data + start, r->keyend[k] - start);
}

/* puts a delete of the key in r->key into its lane */
static void
put_delete(RowReceiver *r)
{
	Lane	   *lane = lane_for_key(r->st, r->hash);
	Batch	   *batch = lane_open_batch(lane);

	for (int k = 0; k < r->st->def->nkeys; k++)
		key_cell(r, k, rowset_cell(batch->deletes, k));
	lane_row_done(lane, batch, r->pass, true, r->key.data, r->key.len, r->hash,
				  r->key.len + 8);
}

/* deletes a key that the source cannot even spell */
void
reader_put_raw_delete(SyncTable *st, Pass *pass, const RowSet *rows, int row)
{
	StringInfoData key;
	uint64		hash;
	Lane	   *lane;
	Batch	   *batch;

	initStringInfo(&key);
	for (int k = 0; k < st->def->nkeys; k++)
	{
		int			len;
		const char *cell = rowset_get(rows, row, k, &len);

		if (k > 0)
			appendStringInfoChar(&key, ',');
		appendBinaryStringInfo(&key, cell, len);
	}
	hash = key_hash(key.data, key.len);
	lane = lane_for_key(st, hash);
	batch = lane_open_batch(lane);
	for (int k = 0; k < st->def->nkeys; k++)
	{
		int			len;
		const char *cell = rowset_get(rows, row, k, &len);

		appendBinaryStringInfo(rowset_cell(batch->deletes, k), cell, len);
	}
	lane_row_done(lane, batch, pass, true, key.data, key.len, hash, key.len + 8);
	pfree(key.data);
}

static bool
receive_row(TupleTableSlot *slot, DestReceiver *self)
{
	RowReceiver *r = (RowReceiver *) self;
	SyncTable  *st = r->st;
	MirrorTable *def = st->def;
	int			asked = -1;		/* the key in r->keys that this row settles */
	MemoryContext oldcxt;

	if (r->keys != NULL && keyset_of_numbers(r->keys))
	{
		bool		isnull;
		Datum		key = slot_getattr(slot, r->exists_only ? 1 : def->keys[0] + 1, &isnull);

		if (!isnull)
			asked = keyset_find_number(r->keys, key);
		if (asked < 0)
			return true;		/* between others that were asked for */
	}
	slot_getallattrs(slot);
	MemoryContextReset(r->row_cxt);
	oldcxt = MemoryContextSwitchTo(r->row_cxt);

	if (r->exists_only)
	{
		/* key columns come in the table's order: find each */
		Datum		values[INDEX_MAX_KEYS];
		int			at = 0;

		for (int i = 0; i < def->ncols; i++)
		{
			for (int k = 0; k < def->nkeys; k++)
			{
				if (def->keys[k] == i)
					values[k] = slot->tts_values[at++];
			}
		}
		encode_key(r, values, NULL);
	}
	else
		encode_key(r, slot->tts_values, def->keys);

	if (!r->exists_only)
	{
		Lane	   *lane = r->rows ? NULL : lane_for_key(st, r->hash);
		Batch	   *batch = lane ? lane_open_batch(lane) : NULL;
		Size		bytes = 0;

		r->filling = batch ? batch->upserts : r->rows;
		for (int i = 0; i < def->ncols; i++)
		{
			StringInfo	cell = rowset_cell(r->filling, i);
			int			before = cell->len;

			if (slot->tts_isnull[i])
				appendBinaryStringInfo(cell, "null", 4);
			else
				st->encoders[i].encode(cell, slot->tts_values[i], &st->encoders[i]);
			bytes += cell->len - before + 1;
		}
		if (batch != NULL)
		{
			lane_row_done(lane, batch, r->pass, false, r->key.data, r->key.len, r->hash, bytes);
			r->pass->bytes += bytes;
		}
		else
			rowset_end_row(r->rows);
		r->filling = NULL;
	}
	r->n++;

	/* another spelling of an equal key settles none: the queued one is not there */
	if (r->keys != NULL && asked < 0)
		asked = keyset_find(r->keys, r->hash, r->key.data, r->key.len);
	if (asked >= 0)
		keyset_settle(r->keys, asked);
	if (r->has_tid)
		r->last_tid = *(ItemPointer) DatumGetPointer(slot->tts_values[slot->tts_tupleDescriptor->natts - 1]);
	MemoryContextSwitchTo(oldcxt);

	if (r->rows != NULL ?
		r->rows->nrows >= r->max_rows || rowset_bytes(r->rows) >= r->max_bytes :
		r->pass != NULL && !worker_has_room(st))
	{
		r->stopped = true;
		return false;
	}
	return true;
}

static void
receive_startup(DestReceiver *self, int operation, TupleDesc typeinfo)
{
}

static void
receive_end(DestReceiver *self)
{
}

static RowReceiver *
receiver_for(SyncTable *st, Pass *pass, KeySet *keys)
{
	RowReceiver *r = &receiver;

	if (r->row_cxt == NULL)
	{
		MemoryContext oldcxt = MemoryContextSwitchTo(TopMemoryContext);

		r->row_cxt = AllocSetContextCreate(TopMemoryContext, "crate_sync row",
										   ALLOCSET_DEFAULT_SIZES);
		initStringInfo(&r->key);
		MemoryContextSwitchTo(oldcxt);
		r->pub.rStartup = receive_startup;
		r->pub.rShutdown = receive_end;
		r->pub.rDestroy = receive_end;
		r->pub.mydest = DestNone;
	}
	r->pub.receiveSlot = receive_row;
	r->st = st;
	r->pass = pass;
	r->rows = NULL;
	r->keys = keys;
	r->exists_only = false;
	r->alone = false;
	r->has_tid = false;
	r->filling = NULL;
	r->n = 0;
	r->stopped = false;
	return r;
}

/*
 * How far WAL is inserted, as XLogFlush takes it.  Right behind a full page
 * the insert position names the place behind the next page's header, which
 * is not there yet and cannot be flushed.
 */
static XLogRecPtr
inserted_wal_end(void)
{
	XLogRecPtr	lsn = GetXLogInsertRecPtr();

	if (lsn % XLOG_BLCKSZ == SizeOfXLogShortPHD)
		return lsn - SizeOfXLogShortPHD;
	if (XLogSegmentOffset(lsn, wal_segment_size) == SizeOfXLogLongPHD)
		return lsn - SizeOfXLogLongPHD;
	return lsn;
}

/* how a read went; progress: something came of it, in spite of the error */
static void
note_outcome(SyncTable *st, ErrorData *error, bool progress)
{
	if (error != NULL && bounded_cut())
	{
		/* whatever it made of it */
		error->sqlerrcode = ERRCODE_QUERY_CANCELED;
		error->message = psprintf("cancelled after %.3g s", bounded_ms() / 1000.0);
		error->hint = code_runs(st) ? bounded_hint(st->def->schemaname, st->def->relname) : NULL;
	}
	if (error == NULL)
		st->read_retry_at = 0;	/* the relation is locked no more */
	if (error == NULL || progress)
		st->read_timeouts = st->row_timeouts = st->rows_timed_out = 0;
	else if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
		st->read_timeouts++;
}

static void
lock_for_read(Oid relid)
{
	if (!ConditionalLockRelationOid(relid, AccessShareLock))
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("relation %u is locked", relid)));
}

/*
 * Holds the table, and the leaf that is read or all of them, as they are
 * defined for us until the transaction's end.  Before its snapshot is taken:
 * for an older one a relation that was rewritten or truncated since is empty.
 * An error if somebody alters it, or has since we looked.
 */
static void
lock_definition(SyncTable *st, Oid leaf)
{
	ListCell   *lc;

	lock_for_read(st->relid);
	for (int i = 0; st->def->doc != NULL && i < list_length(st->def->doc->relids); i++)
		lock_for_read(list_nth_oid(st->def->doc->relids, i));
	if (OidIsValid(leaf))
		lock_for_read(leaf);
	else
	{
		foreach(lc, st->feed_leaves)
			lock_for_read(lfirst_oid(lc));
	}
	/* invalidations were taken in with the locks */
	if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(st->relid)))
		st->stale = true;
	if (st->stale)
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("the definition of relation %u has to be looked at again", st->relid)));
}

/*
 * Runs a read, of one leaf or (InvalidOid) of the whole table, as the table's
 * owner.  Returns NULL, or the error, palloc'd in
 * the caller's context, the transaction then being over all the same.
 */
typedef void (*ReadFunc) (SyncTable *st, RowReceiver *r, void *arg);

static ErrorData *
read_transaction(SyncTable *st, Oid leaf, RowReceiver *r, ReadFunc func, void *arg)
{
	MemoryContext oldcxt = CurrentMemoryContext;
	ErrorData  *volatile error = NULL;
	volatile XLogRecPtr seen = InvalidXLogRecPtr;
	int			lock_timeout = LockTimeout;

	StartTransactionCommand();
	LockTimeout = READ_LOCK_TIMEOUT;
	XactReadOnly = true;		/* whatever runs in here */
	PG_TRY();
	{
		Elevation	e;

		lock_definition(st, leaf);
		PushActiveSnapshot(GetTransactionSnapshot());
		/* what the snapshot saw was inserted into WAL before this */
		seen = inserted_wal_end();
		SPI_connect();
		become_owner(&e, st->def->owner);
		lane_begin_read(r->pass);
		cs_point("in read");
		bounded_begin(st->relid, st->def->owner, code_runs(st), r->alone);
		cs_point("in limits");
		func(st, r, arg);
		bounded_end();
		be_oneself(&e);
		SPI_finish();
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		error = worker_catch(oldcxt);
		if (r->filling != NULL)
			rowset_undo_row(r->filling);
		r->filling = NULL;
	}
	PG_END_TRY();
	LockTimeout = lock_timeout;
	MemoryContextSwitchTo(oldcxt);

	/*
	 * Rows read before an error are in batches, and that a row was not there
	 * is a thing seen, too: the flush is due in any case.
	 */
	if (seen != InvalidXLogRecPtr)
		XLogFlush(seen);
	note_outcome(st, error, r->n > 0);
	return error;
}

/* reads the keys that are asked for */
static void
read_keys(SyncTable *st, RowReceiver *r, void *arg)
{
	KeySet	   *ks = r->keys;
	int			kind = r->exists_only ? KEY_PLAN_EXISTS : 0;
	int			nparams = st->layout.ncols;
	Datum		params[INDEX_MAX_KEYS + 1];
	Oid			types[INDEX_MAX_KEYS + 1];

	/* a document between those that are asked for costs as much as one of them */
	if (st->def->doc == NULL && keyset_asked_range(ks, params))
	{
		/* walking the index is cheaper than to descend for each */
		kind |= KEY_PLAN_RANGE;
		nparams = 2;
		types[0] = types[1] = getBaseType(st->layout.cols[0].typid);
	}
	else
	{
		for (int k = 0; k < nparams; k++)
		{
			params[k] = keyset_asked_array(ks, k);
			types[k] = get_array_type(getBaseType(st->layout.cols[k].typid));
		}
	}
	plans_read_keys(st, kind, &r->pub, nparams, types, params);
	if (r->stopped || r->pass == NULL)
		return;

	/* whoever was asked for and did not come is not there */
	for (int i = 0; (i = keyset_next_asked(ks, i)) >= 0; i++)
	{
		MemoryContextReset(r->row_cxt);
		if (encode_key(r, keyset_values(ks, i), NULL))
			put_delete(r);
		else					/* it never arrived there */
			unpark_row(st, r->key.data, r->key.len);
		keyset_settle(ks, i);
	}
}

/* is it the row's own fault, or that of the circumstances? */
static bool
error_is_the_rows(const SyncTable *st, const ErrorData *error)
{
	if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
		return rows_run_code(st);
	switch (ERRCODE_TO_CATEGORY(error->sqlerrcode))
	{
		case ERRCODE_SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION:
		case ERRCODE_TRANSACTION_ROLLBACK:
		case ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE:
		case ERRCODE_OPERATOR_INTERVENTION:
		case ERRCODE_INVALID_TRANSACTION_STATE:
			return false;
		default:
			return true;
	}
}

/* true: somebody has the relation locked, or altered it; the keys are asked for again soon */
static bool
read_locked_out(SyncTable *st, const ErrorData *error)
{
	if (error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
		return false;
	if (st->stale)
		state_changed();
	st->read_retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), st->stale ? 10 : 300);
	return true;
}

static void
read_trouble(SyncTable *st, ErrorData *error)
{
	st->stale = true;
	table_trouble(st, unpack_sql_state(error->sqlerrcode),
				  psprintf("reading %s: %s", st->def->relname, error->message), error->hint);
}

/* the only row that was asked for took too long: often enough to be blamed for it? */
static bool
row_timed_out(SyncTable *st)
{
	if (st->rows_timed_out >= ROWS_TIMED_OUT || ++st->row_timeouts < ROW_TIMEOUTS)
		return false;
	st->row_timeouts = 0;
	st->rows_timed_out++;
	return true;
}

/*
 * A read took too long.  It is tried again, later, and for less; true if that
 * has been done often enough: the table is in trouble.  rows: it may be their
 * fault.
 */
static bool
read_timed_out(SyncTable *st, ErrorData *error, bool rows)
{
	if (rows ? st->rows_timed_out >= ROWS_TIMED_OUT : st->read_timeouts >= READ_TIMEOUTS)
	{
		if (code_runs(st))
			bounded_blame(st->relid, st->def->owner);
		read_trouble(st, error);
		return true;
	}
	if (!code_runs(st)) /* the machine, or somebody who cancelled it */
		st->read_retry_at = backoff(st->read_timeouts + 2);
	table_warning(st, unpack_sql_state(error->sqlerrcode),
				  psprintf("reading %s: %s", st->def->relname, error->message), error->hint);
	return false;
}

/* parks the one key that was asked for */
static void
park_asked(SyncTable *st, KeySet *ks, const ErrorData *error)
{
	int			i = keyset_next_asked(ks, 0);
	StringInfoData packed;

	initStringInfo(&packed);
	if (i >= 0)
	{
		int			len;
		const char *cells = keyset_cells(ks, i, &len);

		/* empty if it could not be queued again */
		(void) key_pack_alone(&st->layout, &packed, keyset_values(ks, i));
		park_row(st, cells, len, packed.data, packed.len,
				 "read", unpack_sql_state(error->sqlerrcode), error->message);
		keyset_settle(ks, i);
	}
	pfree(packed.data);
}

/* how many keys to ask for next, so many having been read in good time */
static void
pace_keys(SyncTable *st, int asked)
{
	int			ms = bounded_ms();
	int			good = bounded_limit() / 8;

	/* where code of users takes its time, so many that the others do not wait */
	if (ms > good && code_runs(st))
		st->read_limit = Max(1, (int) ((int64) asked * good / ms));
	else if (st->read_limit > 0)
		st->read_limit = st->read_limit < READ_KEYS / 2 ? st->read_limit * 2 : 0;
}

void
reader_feed_keys(SyncTable *st, Pass *pass)
{
	KeySet	   *ks = pass->keys;
	bool		sweep = pass->kind == PASS_SWEEP;
	TimestampTz until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), READ_TURN_MS);

	while (keyset_nopen(ks) > 0 && worker_may_feed(st) && GetCurrentTimestamp() < until)
	{
		RowReceiver *r = receiver_for(st, pass, ks);
		int			limit = st->read_limit > 0 ? st->read_limit : READ_KEYS;
		int			asked = keyset_ask(ks, st->rows_timed_out >= ROWS_TIMED_OUT ? 1 : limit);
		ErrorData  *error;

		r->exists_only = sweep;
		r->alone = asked == 1;
		error = read_transaction(st, InvalidOid, r, read_keys, NULL);
		if (error == NULL)
		{
			if (!r->stopped)
				pace_keys(st, asked);
			continue;
		}
		if (read_locked_out(st, error))
		{
			FreeErrorData(error);
			return;
		}
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
		{
			bool		rows = rows_run_code(st);

			if (asked > 1)
				st->read_limit = Max(1, asked / (rows ? 64 : 8));
			else if (rows && row_timed_out(st))
				park_asked(st, ks, error);
			if (read_timed_out(st, error, rows))
				return;			/* the pass is gone */
			FreeErrorData(error);
			break;				/* the others' turn */
		}
		if (!error_is_the_rows(st, error))
		{
			read_trouble(st, error);
			return;
		}
		if (asked > 1)
			st->read_limit = Max(1, asked / 2);
		else
			park_asked(st, ks, error);
		FreeErrorData(error);
	}
	if (keyset_nopen(ks) == 0)
	{
		/* the pass may wait long for its answers: not with all this */
		keyset_free(ks);
		pass->keys = NULL;
		pass->reading = false;
		pass->read_no = 0;		/* what more the walks find may be some of these again */
		pass->fed = pass->walks == NIL;
		pass_settle(st, pass, 0);
	}
}

static void
park_cells(SyncTable *st, const RowSet *rows, int row, const char *code, const char *reason)
{
	StringInfoData key;

	initStringInfo(&key);
	for (int k = 0; k < st->def->nkeys; k++)
	{
		int			len;
		const char *cell = rowset_get(rows, row, k, &len);

		if (k > 0)
			appendStringInfoChar(&key, ',');
		appendBinaryStringInfo(&key, cell, len);
	}
	park_row(st, key.data, key.len, "", 0, "read", code, reason);
	pfree(key.data);
}

/*
 * Takes a page of the target's keys for a sweep.  What the source cannot even
 * spell is deleted.  If only code of users says that it is no key, nobody knows
 * whether there is such a row, and it is parked; likewise one that alone takes
 * too long.  False: a smaller page, later; or the table is in trouble, and the
 * pass is gone.
 */
bool
reader_take_page(SyncTable *st, Pass *pass, const RowSet *page)
{
	MemoryContext oldcxt = CurrentMemoryContext;
	ErrorData  *volatile error = NULL;
	bool		timed_out;
	bool		alone;

	pass->keys = keyset_create(pass->cxt, st);
	StartTransactionCommand();
	PG_TRY();
	{
		MemoryContextSwitchTo(oldcxt);
		lane_begin_read(pass);
		reader_begin_cells(st);
		for (int row = 0; row < page->nrows; row++)
		{
			Datum		values[INDEX_MAX_KEYS];
			char	   *reason;

			if (reader_key_from_cells(st, page, row, values, &reason))
				keyset_add(pass->keys, values);
			else if (reason == NULL)
				reader_put_raw_delete(st, pass, page, row);
			else if (row == REFUSED_KEYS && keyset_nopen(pass->keys) == 0)
				ereport(ERROR,
						(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						 errmsg("%d keys that the target has are refused by their type in a row, the last one: %s",
								row + 1, reason),
						 errhint("%s", bounded_hint(st->def->schemaname, st->def->relname))));
			else
				park_cells(st, page, row, "22000", reason);
		}
		reader_end_cells();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		error = worker_catch(oldcxt);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(oldcxt);
	if (!st->key_runs_code && error == NULL)
		return true;

	note_outcome(st, error, false);
	if (error == NULL)
	{
		int			good = bounded_limit() / 8;

		if (bounded_ms() > good)
			st->sweep_limit = Max(1, (int) ((int64) page->nrows * good / bounded_ms()));
		else if (st->sweep_limit > 0)
			st->sweep_limit = st->sweep_limit < READ_KEYS ? st->sweep_limit * 2 : 0;
		return true;
	}
	if (!is_want_of_means(error->sqlerrcode))
	{
		read_trouble(st, error);
		return false;
	}
	timed_out = error->sqlerrcode == ERRCODE_QUERY_CANCELED;
	alone = page->nrows == 1 && (!timed_out || row_timed_out(st));
	if (alone)
		park_cells(st, page, 0, unpack_sql_state(error->sqlerrcode), error->message);
	else
		st->sweep_limit = Max(1, page->nrows / 64);
	if (timed_out && read_timed_out(st, error, true))
		return false;
	FreeErrorData(error);
	return alone;
}

/* ---------------------------------------------------------------------
 * Pieces of a load
 * ------------------------------------------------------------------- */

typedef struct RangeArg
{
	ItemPointerData from;		/* behind this */
	ItemPointerData to;			/* before this */
	BlockNumber nblocks;		/* out: of the leaf */
	bool		keys_only;
	bool		gone;			/* out */
	bool		restarted;		/* out: storage is new */
	int			blocks;
	MemoryContext keys_cxt;		/* where RowReceiver.keys is made, for keys_only */
} RangeArg;

static bool
receive_key(TupleTableSlot *slot, DestReceiver *self)
{
	RowReceiver *r = (RowReceiver *) self;

	slot_getallattrs(slot);
	keyset_add(r->keys, slot->tts_values);
	r->n++;
	return true;
}

static void
read_range(SyncTable *st, RowReceiver *r, void *arg)
{
	RangeArg   *range = arg;
	Relation	rel = try_relation_open(st->feed_rel, AccessShareLock);
	BlockNumber from;
	BlockNumber to;

	if (rel == NULL)
	{
		range->gone = true;
		return;
	}
	if (!plans_leaf_belongs(st, st->feed_rel))
	{
		/* detached: its rows are none of the table's any more */
		relation_close(rel, NoLock);
		range->gone = true;
		return;
	}

	/*
	 * A partition may have an owner of its own, who may read it.  As him the
	 * filter must not run, which is another's: he gives keys, and the rows
	 * are read by them through the table above.
	 */
	if (rel->rd_rel->relowner != st->def->owner)
	{
		Oid			userid;
		int			sec_context;

		GetUserIdAndSecContext(&userid, &sec_context);
		SetUserIdAndSecContext(rel->rd_rel->relowner, sec_context);
		range->keys_only |= st->def->row_filter != NULL || st->spec.resync_filter != NULL ||
			st->def->doc != NULL;
	}
	range->nblocks = RelationGetNumberOfBlocks(rel);
	if (st->feed_filenode != InvalidOid &&
		st->feed_filenode != CS_RELFILENUMBER(rel))
	{
		/* rewritten since: places mean nothing any more */
		st->feed_pos = 0;
		range->restarted = true;
	}
	st->feed_filenode = CS_RELFILENUMBER(rel);
	relation_close(rel, NoLock);

	from = (BlockNumber) (st->feed_pos >> 16);
	ItemPointerSet(&range->from, from, (OffsetNumber) (st->feed_pos & 0xffff));
	if (from >= range->nblocks)
	{
		ItemPointerSet(&range->to, from, 0);
		return;
	}
	to = range->nblocks - from > range->blocks ? from + range->blocks : range->nblocks;
	ItemPointerSet(&range->to, to, 0);

	if (range->keys_only)
	{
		r->keys = keyset_create(range->keys_cxt, st);
		r->pub.receiveSlot = receive_key;
	}
	range->gone = !plans_read_leaf(st, st->feed_rel, range->keys_only, &r->pub,
								   &range->from, &range->to);
	r->pub.receiveSlot = receive_row;
}

/* the next leaf to read, in the order of their OIDs; InvalidOid: none left */
static Oid
next_leaf(SyncTable *st, Oid after)
{
	ListCell   *lc;

	foreach(lc, st->feed_leaves)
	{
		if (lfirst_oid(lc) > after)
			return lfirst_oid(lc);
	}
	return InvalidOid;
}

/*
 * Reads the piece behind feed_pos, with about that many rows wanted, and
 * moves feed_rel and feed_pos on.  If a row in it cannot be read or encoded,
 * the piece is narrowed down: *narrowed is set, nothing moved, the next one
 * is smaller; a block's keys come in r->keys, to be read one by one.  False:
 * the table is in trouble.
 */
static bool
read_piece(SyncTable *st, RowReceiver *r, MemoryContext keys_cxt, int64 wanted,
		   bool *narrowed, bool *restarted)
{
	RangeArg	range;
	ErrorData  *error;
	bool		slow;

	memset(&range, 0, sizeof(range));
	range.blocks = Max(1, st->feed_blocks);
	range.keys_cxt = keys_cxt;
	*narrowed = false;
	r->has_tid = true;
	error = read_transaction(st, st->feed_rel, r, read_range, &range);
	*restarted = range.restarted;
	if (error != NULL)
		r->keys = NULL;
	slow = error != NULL && error->sqlerrcode == ERRCODE_QUERY_CANCELED;
	if (slow && read_timed_out(st, error, rows_run_code(st)))
		return false;
	if (error != NULL && (error_is_the_rows(st, error) || (slow && range.blocks > 1)))
	{
		FreeErrorData(error);
		if (range.blocks > 1)
		{
			st->feed_blocks = slow && rows_run_code(st) ? 1 : Max(1, range.blocks / 8);
			*narrowed = true;
			return true;
		}
		range.keys_only = true;
		r->n = 0;
		error = read_transaction(st, st->feed_rel, r, read_range, &range);
	}
	if (error != NULL && (slow || read_locked_out(st, error)))
	{
		FreeErrorData(error);
		r->keys = NULL;
		*narrowed = true;		/* the same piece again, later */
		return true;
	}
	if (error != NULL)
	{
		read_trouble(st, error);
		return false;
	}

	if (range.gone)
		st->feed_pos = (int64) InvalidBlockNumber << 16;
	else if (r->stopped)
		st->feed_pos = ((int64) ItemPointerGetBlockNumber(&r->last_tid) << 16) |
			ItemPointerGetOffsetNumber(&r->last_tid);
	else
	{
		int64		blocks = ItemPointerGetBlockNumberNoCheck(&range.to) -
			ItemPointerGetBlockNumberNoCheck(&range.from);

		st->feed_pos = (int64) ItemPointerGetBlockNumberNoCheck(&range.to) << 16;

		/* as many blocks next time as make full batches */
		if (blocks > 0)
		{
			double		per_block = Max(1.0, (double) r->n / blocks);

			st->feed_blocks = (int) Max(1.0, Min(wanted / per_block, range.blocks * 4.0));
			if (bounded_ms() > bounded_limit() / 8 && code_runs(st))
				st->feed_blocks = Max(1, Min(st->feed_blocks, (int) blocks / 2));
		}
	}

	if (range.gone ||
		(!r->stopped && (st->feed_pos >> 16) >= (int64) range.nblocks))
	{
		st->feed_rel = next_leaf(st, st->feed_rel);
		st->feed_filenode = InvalidOid;
		st->feed_pos = 0;
	}
	return true;
}

static void
first_piece(SyncTable *st)
{
	if (st->feed_rel == InvalidOid)
	{
		st->feed_rel = next_leaf(st, InvalidOid);
		st->feed_filenode = InvalidOid;
		st->feed_pos = 0;
	}
}

void
reader_feed_range(SyncTable *st)
{
	Pass	   *pass;
	bool		narrowed = false;
	bool		restarted;

	first_piece(st);
	pass = pass_create(st, PASS_LOAD);
	if (st->feed_rel != InvalidOid)
	{
		RowReceiver *r = receiver_for(st, pass, NULL);

		if (!read_piece(st, r, pass->cxt, (int64) st->batch_rows * st->nlanes,
						&narrowed, &restarted))
			return;				/* the pass is gone */
		pass->keys = r->keys;
		pass->rows = r->n;
	}
	if (narrowed)
	{
		pass->fed = true;
		pass->load_rel = st->load_rel;	/* no step forward */
		pass->load_filenode = st->load_filenode;
		pass->load_pos = -1;
		pass_settle(st, pass, 0);
		return;
	}

	pass->load_rel = st->feed_rel;
	pass->load_filenode = st->feed_filenode;
	pass->load_pos = st->feed_pos;
	if (st->feed_rel == InvalidOid)
	{
		pass->last = true;
		st->feed_done = true;
	}
	pass->fed = pass->keys == NULL || keyset_nopen(pass->keys) == 0;
	pass_settle(st, pass, 0);
}

/* ---------------------------------------------------------------------
 * From links up to roots
 * ------------------------------------------------------------------- */

static bool
receive_root(TupleTableSlot *slot, DestReceiver *self)
{
	RowReceiver *r = (RowReceiver *) self;

	if (r->n >= r->max_rows)
	{
		r->stopped = true;
		return false;
	}
	return receive_key(slot, self);
}

static void
walk_up(SyncTable *st, RowReceiver *r, void *arg)
{
	RootsAsked *asked = arg;
	Relation	rel;
	Oid			owner;
	ItemPointerData from;
	ItemPointerData to;

	r->pub.receiveSlot = receive_root;
	if (!OidIsValid(asked->leaf))
	{
		plans_walk(st, asked->node, &r->pub, asked->values, asked->nvalues, InvalidOid, NULL, NULL);
		return;
	}

	rel = try_relation_open(asked->leaf, AccessShareLock);
	asked->nblocks = 0;
	if (rel == NULL)
		return;
	owner = rel->rd_rel->relowner;
	if (asked->filenode != InvalidOid && asked->filenode != CS_RELFILENUMBER(rel))
		asked->from = 0;		/* rewritten since: places mean nothing any more */
	asked->filenode = CS_RELFILENUMBER(rel);
	asked->nblocks = RelationGetNumberOfBlocks(rel);
	relation_close(rel, NoLock);
	if (asked->from >= asked->nblocks || !plans_leaf_belongs(st, asked->leaf))
		return;
	ItemPointerSet(&from, asked->from, 0);
	ItemPointerSet(&to, Min(asked->nblocks - asked->from, asked->blocks) + asked->from, 0);
	if (owner == st->def->owner)
		plans_walk(st, asked->node, &r->pub, asked->values, asked->nvalues, asked->leaf, &from, &to);
	else
	{
		/* who may read the leaf may not read the other tables: all of its keys, then */
		Oid			userid;
		int			sec_context;

		GetUserIdAndSecContext(&userid, &sec_context);
		SetUserIdAndSecContext(owner, sec_context);
		(void) plans_read_leaf(st, asked->leaf, true, &r->pub, &from, &to);
		SetUserIdAndSecContext(userid, sec_context);
	}
	asked->from += Min(asked->nblocks - asked->from, asked->blocks);
}

bool
reader_walk(SyncTable *st, RootsAsked *asked, KeySet *ks, int limit)
{
	RowReceiver *r = receiver_for(st, NULL, ks);
	ErrorData  *error;

	r->max_rows = limit;
	error = read_transaction(st, asked->leaf, r, walk_up, asked);
	asked->more = r->stopped;
	if (error == NULL)
		return true;
	if (read_locked_out(st, error))
		FreeErrorData(error);
	else if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
	{
		if (!read_timed_out(st, error, false))
			FreeErrorData(error);
	}
	else
		read_trouble(st, error);
	return false;
}

/* ---------------------------------------------------------------------
 * Rows to be compared
 * ------------------------------------------------------------------- */

bool
reader_collect_range(SyncTable *st, RowSet *rows, int max_rows, Size max_bytes,
					 MemoryContext keys_cxt, KeySet **unread, bool *restarted)
{
	RowReceiver *r;
	bool		narrowed;

	*unread = NULL;
	*restarted = false;
	first_piece(st);
	if (st->feed_rel != InvalidOid)
	{
		r = receiver_for(st, NULL, NULL);
		r->rows = rows;
		r->max_rows = max_rows;
		r->max_bytes = max_bytes;
		if (!read_piece(st, r, keys_cxt, max_rows, &narrowed, restarted))
			return false;
		*unread = r->keys;
		if (narrowed || r->keys != NULL)
			rowset_reset(rows); /* they come again, or by key */
	}
	st->feed_done = st->feed_rel == InvalidOid;
	return true;
}

typedef struct CollectArg
{
	void		(*also) (SyncTable *st, void *arg);
	void	   *arg;
} CollectArg;

static void
read_keys_and_also(SyncTable *st, RowReceiver *r, void *arg)
{
	CollectArg *collect = arg;

	read_keys(st, r, NULL);
	if (collect->also != NULL)
		collect->also(st, collect->arg);
}

ReadOutcome
reader_collect_keys(SyncTable *st, KeySet *ks, RowSet *rows, Size max_bytes,
					void (*also) (SyncTable *st, void *arg), void *arg)
{
	RowReceiver *r = receiver_for(st, NULL, ks);
	CollectArg	collect = {also, arg};
	ErrorData  *error;
	int			asked;

	r->rows = rows;
	r->max_rows = INT_MAX;
	r->max_bytes = max_bytes;
	r->exists_only = rows == NULL;
	asked = keyset_ask(ks, INT_MAX);
	r->alone = asked == 1;
	error = read_transaction(st, InvalidOid, r, read_keys_and_also, &collect);
	if (error == NULL)
		return r->stopped ? READ_STOPPED : READ_OK;
	if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
	{
		bool		rows = rows_run_code(st);
		bool		refused = asked > 1 || (rows && row_timed_out(st));

		if (read_timed_out(st, error, rows))
			return READ_TROUBLE;
		FreeErrorData(error);
		return refused ? READ_REFUSED : READ_LATER;
	}
	if (error_is_the_rows(st, error))
	{
		FreeErrorData(error);
		return READ_REFUSED;
	}
	read_trouble(st, error);
	return READ_TROUBLE;
}
