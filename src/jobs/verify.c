/*-------------------------------------------------------------------------
 *
 * verify.c
 *		Comparing source and target, online, row by row.
 *
 * First the source is walked in pieces by ctid, and the target asked for the
 * rows of each piece's keys: that finds what is missing and what differs, in
 * whatever order either side keeps its keys.  Then, if all rows of the source
 * were found, nothing was written meanwhile and the target counts no more
 * than that, there are no rows that the source does not have; else the
 * target's keys are walked page by page and looked up in the source.
 *
 * Neither walk decides anything: both sides are read at different moments, so
 * a key that looks different is a candidate.  A candidate is read again, the
 * target first, then the source, and in the source's snapshot the queue.
 * What that snapshot sees and the queue does not hold was acknowledged before
 * the target was read: then what differs, differs.  If the queue holds the
 * key, it is on its way, and is looked at later; once all that held it then
 * is acknowledged, its row has been written as a whole since this verify
 * began.
 *
 * Nothing is kept but candidates, of which there is a limit, and nothing is
 * open between two steps.  A restart of the worker starts over.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include <arpa/inet.h>
#include <math.h>

#include "access/xact.h"
#include "base/bounded.h"
#include "base/point.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "document/document.h"
#include "jobs/verify.h"
#include "pipeline/code.h"
#include "pipeline/plans.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"
#include "utils/snapmgr.h"

#define PIECE_ROWS		5000	/* of the source, compared at once */
#define PIECE_BYTES		((Size) 2 * 1024 * 1024)
#define PAGE_KEYS		10000	/* of the target, looked up at once */
#define CANDIDATES		10000	/* kept before they are checked */
#define CANDIDATE_BYTES	(4 * 1024 * 1024)
#define CHECK_KEYS		500		/* candidates read again at once */
#define DIFFERENCES		10000	/* written down, of a table */
#define DIFFERENCE_BYTES (16 * 1024 * 1024)
#define ERRORS			3		/* unforeseen ones before it is given up */

/* ---------------------------------------------------------------------
 * Sets of keys, by their cells
 * ------------------------------------------------------------------- */

typedef struct CellIndex
{
	MemoryContext cxt;
	int			n;
	int			max;
	uint32	   *start;			/* in arena; start[n] is its end */
	uint32	   *hash;
	int		   *next;			/* same bucket; -1: none */
	int			nbuckets;		/* a power of 2 */
	int		   *bucket;
	StringInfoData arena;
} CellIndex;

static CellIndex *
index_create(MemoryContext parent, int expected)
{
	MemoryContext oldcxt = MemoryContextSwitchTo(parent);
	CellIndex  *ix = palloc0(sizeof(CellIndex));

	ix->cxt = parent;
	ix->max = Max(16, expected);
	ix->nbuckets = 16;
	while (ix->nbuckets < ix->max)
		ix->nbuckets *= 2;
	ix->start = palloc(sizeof(uint32) * (ix->max + 1));
	ix->hash = palloc(sizeof(uint32) * ix->max);
	ix->next = palloc(sizeof(int) * ix->max);
	ix->bucket = palloc(sizeof(int) * ix->nbuckets);
	memset(ix->bucket, 0xff, sizeof(int) * ix->nbuckets);
	ix->start[0] = 0;
	initStringInfo(&ix->arena);
	MemoryContextSwitchTo(oldcxt);
	return ix;
}

static int
index_find(const CellIndex *ix, const char *key, int len)
{
	uint32		hash = hash_bytes((const unsigned char *) key, len);

	for (int i = ix->bucket[hash & (ix->nbuckets - 1)]; i >= 0; i = ix->next[i])
	{
		if (ix->hash[i] == hash && ix->start[i + 1] - ix->start[i] == len &&
			memcmp(ix->arena.data + ix->start[i], key, len) == 0)
			return i;
	}
	return -1;
}

/* adds a key without looking whether it is there; returns its number */
static int
index_add(CellIndex *ix, const char *key, int len)
{
	uint32		hash = hash_bytes((const unsigned char *) key, len);
	int			i = ix->n++;

	if (i == ix->max)
	{
		ix->max *= 2;
		ix->start = repalloc(ix->start, sizeof(uint32) * (ix->max + 1));
		ix->hash = repalloc(ix->hash, sizeof(uint32) * ix->max);
		ix->next = repalloc(ix->next, sizeof(int) * ix->max);
		ix->nbuckets *= 2;
		ix->bucket = repalloc(ix->bucket, sizeof(int) * ix->nbuckets);
		memset(ix->bucket, 0xff, sizeof(int) * ix->nbuckets);
		for (int j = 0; j < i; j++)
		{
			int		   *b = &ix->bucket[ix->hash[j] & (ix->nbuckets - 1)];

			ix->next[j] = *b;
			*b = j;
		}
	}
	appendBinaryStringInfo(&ix->arena, key, len);
	ix->start[i + 1] = ix->arena.len;
	ix->hash[i] = hash;
	ix->next[i] = ix->bucket[hash & (ix->nbuckets - 1)];
	ix->bucket[hash & (ix->nbuckets - 1)] = i;
	return i;
}

/* ---------------------------------------------------------------------
 * A run
 * ------------------------------------------------------------------- */

typedef enum VerifyStage
{
	VERIFY_ROWS,				/* the source's rows */
	VERIFY_COUNT,				/* are there others? */
	VERIFY_KEYS,				/* the target's keys */
	VERIFY_END
} VerifyStage;

/* what decides whether two cells of a column are the same value */
typedef enum CompareAs
{
	AS_TEXT,
	AS_INT,
	AS_DOUBLE,
	AS_REAL,
	AS_NUMERIC,
	AS_IP,
	AS_POINT,					/* GEO_POINT */
	AS_SHAPE,
	AS_JSON
} CompareAs;

typedef struct CompareRule
{
	CompareAs	as;				/* of arrays: the elements */
	bool		json;			/* an object or an array */
	int			scale;			/* of NUMERIC, -1: none */
	const DocNode *node;		/* of a document: by its members' rules; or NULL */
} CompareRule;

typedef struct Candidate
{
	char	   *cells;			/* as the source spells the key, unless raw */
	int			len;
	bool		raw;			/* the source cannot spell it */
	bool		refused;		/* code of users says so: nobody knows */
	bool		settled;
	bool		found;			/* it is a difference; repair is under way */
	int64		difference_id;	/* then; 0: too many were found to write it down */
	bool		was_queued;
	FullTransactionId next_xid;	/* when it was found in the queue first */
	/* by the check under way */
	bool		queued;
	bool		queued_before;	/* by a transaction before next_xid */
} Candidate;

struct VerifyRun
{
	MemoryContext cxt;
	MemoryContext step_cxt;		/* reset before each step */
	MemoryContext cell_cxt;		/* reset for each comparison by value */
	int			verify_no;
	bool		repair;
	VerifyStage stage;
	TimestampTz retry_at;
	int			attempts;		/* failed in a row */
	int			errors;
	CompareRule *rules;			/* a column each */

	/* VERIFY_ROWS: behind what was compared */
	Oid			rel;
	Oid			filenode;
	int64		pos;
	int			blocks;
	bool		refreshed;
	int			piece_rows;
	TimestampTz next_refresh;

	/* whether counting is a proof */
	bool		countable;
	int64		submitted;
	int64		matched;

	/* VERIFY_KEYS */
	int			page_keys;
	char	   *after;			/* the last key looked at, or NULL */

	/* candidates */
	MemoryContext cand_cxt;
	Candidate  *cand;
	CellIndex  *cand_index;		/* of their cells, so that none is there twice */
	int			ncand;
	int			maxcand;
	Size		cand_bytes;
	bool		checking;
	int			check_at;
	int			check_keys;
	int			round;

	int64		rows;			/* compared */
	int64		ndifferent;
	int64		nrepaired;
	Datum		repaired[CHECK_KEYS];	/* differences that are none any more, by the check under way */
	int			n_repaired;
	CellIndex  *found;			/* keys written down */
	TimestampTz next_progress;
	TimestampTz start_time;
};

static CompareRule
rule_for(const TargetColumn *col)
{
	CompareRule rule = {AS_TEXT, col->kind == CELL_ARRAY || col->kind == CELL_JSON, -1};
	const char *type = col->type;
	int			precision;

	while (pg_strncasecmp(type, "ARRAY(", 6) == 0)
		type += 6;
	if (pg_strncasecmp(type, "REAL", 4) == 0 || pg_strncasecmp(type, "FLOAT_VECTOR", 12) == 0)
		rule.as = AS_REAL;
	else if (pg_strncasecmp(type, "DOUBLE", 6) == 0)
		rule.as = AS_DOUBLE;
	else if (pg_strncasecmp(type, "NUMERIC", 7) == 0)
	{
		rule.as = AS_NUMERIC;
		if (sscanf(type + 7, " ( %d , %d", &precision, &rule.scale) != 2)
			rule.scale = -1;
	}
	else if (pg_strncasecmp(type, "GEO_POINT", 9) == 0)
		rule.as = AS_POINT;
	else if (pg_strncasecmp(type, "GEO_SHAPE", 9) == 0)
		rule.as = AS_SHAPE;
	else if (pg_strncasecmp(type, "OBJECT", 6) == 0)
		rule.as = AS_JSON;
	else if (pg_strncasecmp(type, "IP", 2) == 0)
		rule.as = AS_IP;
	else if (pg_strncasecmp(type, "SMALLINT", 8) == 0 || pg_strncasecmp(type, "INTEGER", 7) == 0 ||
			 pg_strncasecmp(type, "BIGINT", 6) == 0 || pg_strncasecmp(type, "TIMESTAMP", 9) == 0)
		rule.as = AS_INT;
	return rule;
}

static void
delete_differences(SyncTable *st)
{
	Oid			types[1] = {INT4OID};
	Datum		values[1] = {Int32GetDatum(st->spec.mirror_id)};

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	SPI_execute_with_args("DELETE FROM crate_sync.difference WHERE difference_id IN "
						  "(SELECT difference_id FROM crate_sync.difference WHERE mirror_id = $1 "
						  "FOR UPDATE SKIP LOCKED)", 1, types, values, NULL, false, 0);
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
}

static VerifyRun *
run_create(SyncTable *st)
{
	MemoryContext cxt;
	VerifyRun  *run;

	delete_differences(st);
	plans_forget_leaf(st);		/* it may have an old resync's filter */

	cxt = AllocSetContextCreate(st->cxt, "crate_sync verify", ALLOCSET_DEFAULT_SIZES);
	run = MemoryContextAllocZero(cxt, sizeof(VerifyRun));
	run->cxt = cxt;
	run->step_cxt = AllocSetContextCreate(cxt, "crate_sync verify step", ALLOCSET_DEFAULT_SIZES);
	run->cell_cxt = AllocSetContextCreate(cxt, "crate_sync verify cell", ALLOCSET_DEFAULT_SIZES);
	run->cand_cxt = AllocSetContextCreate(cxt, "crate_sync verify candidates", ALLOCSET_DEFAULT_SIZES);
	run->verify_no = st->spec.verify_no;
	run->repair = st->spec.verify_repair;
	run->piece_rows = PIECE_ROWS;
	run->check_keys = CHECK_KEYS;
	run->page_keys = PAGE_KEYS;
	run->blocks = 32;
	run->rules = MemoryContextAlloc(cxt, sizeof(CompareRule) * st->def->ncols);
	for (int i = 0; i < st->def->ncols; i++)
	{
		const DocNode *node = st->def->columns[i].node;

		run->rules[i] = rule_for(&st->def->target.cols[i]);
		if (node != NULL && !document_shown(node)->scalar)
			run->rules[i].node = document_shown(node);
	}
	run->found = index_create(cxt, 64);
	run->countable = lanes_idle(st);
	run->submitted = st->n_submitted;
	run->start_time = GetCurrentTimestamp();
	return run;
}

void
verify_forget(SyncTable *st)
{
	if (st->verify != NULL)
		MemoryContextDelete(st->verify->cxt);
	st->verify = NULL;
}

void
verify_begin(SyncTable *st)
{
	verify_forget(st);
	load_enter_phase(st, LOAD_VERIFY);
	st->verify_changed = true;
	ereport(LOG,
			(errmsg("crate_sync: verify of %s.%s begins%s", st->def->schemaname, st->def->relname,
					st->spec.verify_repair ? ", with repair" : "")));
}

/* phase and progress are over; what was asked for up to verify_no is done with */
static void
verify_over(SyncTable *st, int verify_no)
{
	verify_forget(st);
	st->verify_done = verify_no;
	if (st->phase == LOAD_VERIFY)
		load_enter_phase(st, LOAD_NONE);
	st->dirty = true;
	st->verify_changed = true;
}

void
verify_cancel(SyncTable *st)
{
	bool		running = st->phase == LOAD_VERIFY;

	if (st->spec.verify_no <= st->verify_done && !running)
		return;
	verify_over(st, st->spec.verify_no);
	if (running)
		ereport(LOG,
				(errmsg("crate_sync: verify of %s.%s cancelled",
						st->def->schemaname, st->def->relname)));
}

/* its outcome, for the view verifications; found -1: it was given up */
static void
keep_outcome(SyncTable *st, VerifyRun *run, int64 found, bool ok, const char *why)
{
	Oid			types[] = {OIDOID, TEXTOID, TEXTOID, TIMESTAMPTZOID, INT8OID, INT8OID, INT8OID, BOOLOID, BOOLOID, TEXTOID};
	Datum		values[] = {
		ObjectIdGetDatum(st->relid),
		CStringGetTextDatum(st->def->schemaname),
		CStringGetTextDatum(st->def->relname),
		TimestampTzGetDatum(run->start_time),
		Int64GetDatum(run->rows),
		Int64GetDatum(found),
		Int64GetDatum(run->nrepaired),
		BoolGetDatum(run->repair),
		BoolGetDatum(ok),
		why ? CStringGetTextDatum(why) : (Datum) 0
	};
	char		nulls[] = "          ";
	MemoryContext cxt = CurrentMemoryContext;

	if (run->start_time == 0)
		nulls[3] = 'n';
	if (found < 0)
		nulls[5] = 'n';
	if (why == NULL)
		nulls[9] = 'n';
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	SPI_execute_with_args("INSERT INTO crate_sync.verification (relid, schemaname, relname, start_time, rows_compared, n_found, "
						  "n_repaired, repair, ok, message) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
						  lengthof(types), types, values, nulls, false, 0);
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(cxt);
}

static void
verify_fail(SyncTable *st, VerifyRun *run, const char *why)
{
	keep_outcome(st, run, -1, false, why ? why : "no reason given");
	ereport(LOG,
			(errmsg("crate_sync: verify of %s.%s given up after " INT64_FORMAT " rows: %s",
					st->def->schemaname, st->def->relname, run->rows, why ? why : "no reason given"),
			 errhint("SELECT crate_sync.verify('%s.%s'); starts it again.",
					 st->def->schemaname, st->def->relname)));
	st->verify_finished = true;
	st->verify_ok = false;
	st->n_differences = -1;
	verify_over(st, run->verify_no);
}

/*
 * The target did not answer a question.  Returns true if a smaller question
 * may be answered; else what is to be done has been done.
 */
static bool
target_failed(SyncTable *st, VerifyRun *run, const TargetResult *res)
{
	switch (res->outcome)
	{
		case TARGET_TOO_BIG:
		case TARGET_REFUSED_ROWS:
		case TARGET_FAILED:
			return true;
		case TARGET_UNREACHABLE:
		case TARGET_REFUSED_ALL:
			target_trouble(res->outcome, res->code, res->message);
			return false;
		case TARGET_REFUSED_TABLE:
			table_trouble(st, res->code, res->message, NULL);
			return false;
		default:				/* later */
			run->retry_at = backoff(++run->attempts);
			return false;
	}
}

/* ---------------------------------------------------------------------
 * Values
 * ------------------------------------------------------------------- */

static Jsonb *
parse_json(const char *cell, int len)
{
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(pnstrdup(cell, len))));
}

static Numeric
parse_numeric(const char *text, int len)
{
	if (len >= 2 && text[0] == '"')
	{
		text++;
		len -= 2;
	}
	return DatumGetNumeric(DirectFunctionCall3(numeric_in, CStringGetDatum(pnstrdup(text, len)),
											   ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
}

static bool
parse_double(const char *text, int len, double *v)
{
	char		tmp[400];
	char	   *end;

	if (len >= 2 && text[0] == '"')
	{
		text++;
		len -= 2;
	}
	if (len == 0 || len >= sizeof(tmp))
		return false;
	memcpy(tmp, text, len);
	tmp[len] = '\0';
	*v = strtod(tmp, &end);
	return *end == '\0';
}

static bool
doubles_equal(double a, double b, CompareAs as)
{
	if (isnan(a) || isnan(b))
		return isnan(a) && isnan(b);
	if (a == b)
		return true;
	if (as == AS_REAL)
		return (float) a == (float) b;
	return as == AS_POINT && fabs(a - b) < 1e-6;
}

/* by value, with the digits that the target's column keeps */
static bool
numerics_equal(Numeric source, Numeric target, int scale)
{
	if (DatumGetBool(DirectFunctionCall2(numeric_eq, NumericGetDatum(source), NumericGetDatum(target))))
		return true;
	if (scale < 0)
		return false;
	return DatumGetBool(DirectFunctionCall2(numeric_eq,
											DirectFunctionCall2(numeric_round, NumericGetDatum(source),
																Int32GetDatum(scale)),
											NumericGetDatum(target)));
}

/* numbers of a JSON document are int64 or double at the target */
static bool
json_numbers_equal(Numeric a, Numeric b, const CompareRule *rule)
{
	double		x;
	double		y;
	char	   *s;
	char	   *t;

	if (numerics_equal(a, b, rule->as == AS_NUMERIC ? rule->scale : -1))
		return true;
	if (rule->as == AS_NUMERIC || rule->as == AS_INT)
		return false;
	s = DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(a)));
	t = DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(b)));
	x = strtod(s, NULL);
	y = strtod(t, NULL);
	return doubles_equal(x, y, rule->as);
}

static bool
texts_equal(const char *a, int alen, const char *b, int blen, const CompareRule *rule)
{
	unsigned char x[16];
	unsigned char y[16];
	char	   *s;
	char	   *t;

	if (alen == blen && memcmp(a, b, alen) == 0)
		return true;
	if (rule->as != AS_IP)
		return false;
	s = pnstrdup(a, alen);
	t = pnstrdup(b, blen);
	if (inet_pton(AF_INET, s, x) == 1 && inet_pton(AF_INET, t, y) == 1)
		return memcmp(x, y, 4) == 0;
	return inet_pton(AF_INET6, s, x) == 1 && inet_pton(AF_INET6, t, y) == 1 &&
		memcmp(x, y, 16) == 0;
}

static bool json_values_equal(JsonbValue *a, JsonbValue *b, const CompareRule *rule);

/* a member of a document's node has the rule that it would have as a column */
static CompareRule
member_rule(const DocNode *node, const JsonbValue *key)
{
	TargetColumn col = {.type = "TEXT",.kind = CELL_TEXT};
	CompareRule rule;
	const DocNode *child = NULL;
	ListCell   *lc;

	foreach(lc, node->columns)
	{
		const DocColumn *c = lfirst(lc);

		if (strlen(c->key) != key->val.string.len || memcmp(c->key, key->val.string.val, key->val.string.len) != 0)
			continue;
		col.type = c->map.type;
		col.kind = c->map.kind;
	}
	foreach(lc, node->children)
	{
		const DocNode *c = document_shown(lfirst(lc));

		if (strlen(c->label) != key->val.string.len || memcmp(c->label, key->val.string.val, key->val.string.len) != 0)
			continue;
		child = c;
		col.type = c->type;
		col.kind = c->kind;
	}
	rule = rule_for(&col);
	rule.node = child != NULL && !child->scalar ? child : NULL;
	return rule;
}

/* a member that is null is as good as none */
static int
count_members(JsonbContainer *object)
{
	JsonbIterator *it = JsonbIteratorInit(object);
	JsonbValue	v;
	JsonbIteratorToken tok;
	int			n = 0;

	while ((tok = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
		n += tok == WJB_VALUE && v.type != jbvNull;
	return n;
}

static bool
containers_equal(JsonbContainer *a, JsonbContainer *b, const CompareRule *rule)
{
	JsonbIterator *it;
	JsonbIteratorToken tok;
	JsonbValue	key;
	JsonbValue	v;

	check_stack_depth();
	if (JsonContainerIsObject(a) != JsonContainerIsObject(b))
		return false;
	if (JsonContainerIsArray(a))
	{
		int			n = JsonContainerSize(a);

		if (n != JsonContainerSize(b))
			return false;
		for (int i = 0; i < n; i++)
		{
			if (!json_values_equal(getIthJsonbValueFromContainer(a, i),
								   getIthJsonbValueFromContainer(b, i), rule))
				return false;
		}
		return true;
	}

	if (count_members(a) != count_members(b))
		return false;
	it = JsonbIteratorInit(a);
	while ((tok = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		JsonbValue *other;

		if (tok == WJB_KEY)
			key = v;
		else if (tok == WJB_VALUE && v.type != jbvNull)
		{
			CompareRule of_member;

			if (rule->node != NULL)
				of_member = member_rule(rule->node, &key);
			other = findJsonbValueFromContainer(b, JB_FOBJECT, &key);
			if (other == NULL || !json_values_equal(&v, other, rule->node ? &of_member : rule))
				return false;
		}
	}
	return true;
}

/* a: the source's, b: the target's */
static bool
json_values_equal(JsonbValue *a, JsonbValue *b, const CompareRule *rule)
{
	double		x;
	double		y;
	char	   *number;

	if (a->type == jbvBinary && b->type == jbvBinary)
		return containers_equal(a->val.binary.data, b->val.binary.data, rule);
	if (a->type == jbvString && b->type == jbvNumeric)
	{
		/* NUMERIC in an array is sent as text */
		if (rule->as == AS_NUMERIC)
			return numerics_equal(parse_numeric(a->val.string.val, a->val.string.len),
								  b->val.numeric, rule->scale);
		return false;
	}
	if (a->type == jbvString && b->type == jbvBinary)
		/* a shape as text is kept as an object: not to be compared from here */
		return rule->as == AS_SHAPE;
	if (a->type != b->type)
		return false;
	switch (a->type)
	{
		case jbvNull:
			return true;
		case jbvBool:
			return a->val.boolean == b->val.boolean;
		case jbvNumeric:
			return json_numbers_equal(a->val.numeric, b->val.numeric, rule);
		case jbvString:
			if (texts_equal(a->val.string.val, a->val.string.len,
							b->val.string.val, b->val.string.len, rule))
				return true;
			if (rule->as == AS_NUMERIC)
				return numerics_equal(parse_numeric(a->val.string.val, a->val.string.len),
									  parse_numeric(b->val.string.val, b->val.string.len), rule->scale);
			number = pnstrdup(a->val.string.val, a->val.string.len);
			return (rule->as == AS_REAL || rule->as == AS_DOUBLE) &&
				parse_double(number, strlen(number), &x) &&
				parse_double(b->val.string.val, b->val.string.len, &y) &&
				doubles_equal(x, y, rule->as);
		default:
			return false;
	}
}

static void
json_root(Jsonb *jb, JsonbValue *v)
{
	if (JB_ROOT_IS_SCALAR(jb) && JsonbExtractScalar(&jb->root, v))
		return;
	v->type = jbvBinary;
	v->val.binary.data = &jb->root;
	v->val.binary.len = VARSIZE(jb) - VARHDRSZ;
}

/* may throw at what is no value of the column's type */
static bool
cells_same_value(const CompareRule *rule, const char *a, int alen, const char *b, int blen)
{
	JsonbValue	x;
	JsonbValue	y;
	double		dx;
	double		dy;

	if (!rule->json)
	{
		if (rule->as == AS_DOUBLE || rule->as == AS_REAL)
			return parse_double(a, alen, &dx) && parse_double(b, blen, &dy) &&
				doubles_equal(dx, dy, rule->as);
		if (rule->as == AS_NUMERIC)
			return numerics_equal(parse_numeric(a, alen), parse_numeric(b, blen), rule->scale);
		if (a[0] != '"' || b[0] != '"')
			return rule->as == AS_INT && a[0] != '"' && b[0] != '"' &&
				numerics_equal(parse_numeric(a, alen), parse_numeric(b, blen), -1);
	}
	json_root(parse_json(a, alen), &x);
	json_root(parse_json(b, blen), &y);
	return json_values_equal(&x, &y, rule);
}

static inline bool
cell_is_null(const char *cell, int len)
{
	return len == 4 && memcmp(cell, "null", 4) == 0;
}

/* source cell a and target cell b; in a transaction, as encodings may need one */
static bool
cells_equal(VerifyRun *run, const CompareRule *rule, const char *a, int alen,
			const char *b, int blen)
{
	MemoryContext oldcxt;
	volatile bool same = false;

	if (alen == blen && memcmp(a, b, alen) == 0)
		return true;
	if (alen == 0 || blen == 0 || cell_is_null(a, alen) || cell_is_null(b, blen))
		return false;
	/* text without an escape is its own value */
	if (!rule->json && rule->as == AS_TEXT && memchr(a, '\\', alen) == NULL &&
		memchr(b, '\\', blen) == NULL)
		return false;

	oldcxt = MemoryContextSwitchTo(run->cell_cxt);
	PG_TRY();
	{
		/* they only parse: there is nothing to undo but memory */
		same = cells_same_value(rule, a, alen, b, blen);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(run->cell_cxt);
		FlushErrorState();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(oldcxt);
	MemoryContextReset(run->cell_cxt);
	return same;
}

/* appends a key cell in the one form that both sides' spellings have */
static void
append_key_cell(VerifyRun *run, const CompareRule *rule, const char *cell, int len, StringInfo buf)
{
	MemoryContext oldcxt;

	if (rule->as == AS_INT ||
		(rule->as == AS_TEXT && memchr(cell, '\\', len) == NULL))
	{
		appendBinaryStringInfo(buf, cell, len);
		return;
	}
	oldcxt = MemoryContextSwitchTo(run->cell_cxt);
	PG_TRY();
	{
		JsonbValue	v;

		double		number;

		if (rule->as == AS_NUMERIC)
			appendStringInfoString(buf, numeric_normalize(parse_numeric(cell, len)));
		else if ((rule->as == AS_DOUBLE || rule->as == AS_REAL) && !rule->json &&
				 parse_double(cell, len, &number))
		{
			/* each side has its own digits and exponents; -0 is another key than 0 */
			if (rule->as == AS_REAL)
				number = (float) number;
			appendStringInfo(buf, "%.17g", number);
		}
		else
		{
			json_root(parse_json(cell, len), &v);
			if (v.type == jbvString)
			{
				/* told apart from the cell that needs no such thing by the quotes */
				appendStringInfoChar(buf, '"');
				appendBinaryStringInfo(buf, v.val.string.val, v.val.string.len);
				appendStringInfoChar(buf, '"');
			}
			else
				appendBinaryStringInfo(buf, cell, len);
		}
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(run->cell_cxt);
		FlushErrorState();
		appendBinaryStringInfo(buf, cell, len);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(oldcxt);
	MemoryContextReset(run->cell_cxt);
}

/* a row's key; places: of the key columns, or NULL if there are no others */
static void
row_key(SyncTable *st, VerifyRun *run, const RowSet *rows, int row, const int *places,
		StringInfo buf)
{
	resetStringInfo(buf);
	for (int k = 0; k < st->def->nkeys; k++)
	{
		int			len;
		const char *cell = rowset_get(rows, row, places ? places[k] : k, &len);

		if (k > 0)
			appendStringInfoChar(buf, '\0');
		append_key_cell(run, &run->rules[st->def->keys[k]], cell, len, buf);
	}
}

/* key cells as they are, separated by commas */
static void
row_cells(SyncTable *st, const RowSet *rows, int row, const int *places, StringInfo buf)
{
	resetStringInfo(buf);
	for (int k = 0; k < st->def->nkeys; k++)
	{
		int			len;
		const char *cell = rowset_get(rows, row, places ? places[k] : k, &len);

		if (k > 0)
			appendStringInfoChar(buf, ',');
		appendBinaryStringInfo(buf, cell, len);
	}
}

static CellIndex *
index_rows(SyncTable *st, VerifyRun *run, const RowSet *rows)
{
	CellIndex  *ix = index_create(CurrentMemoryContext, rows->nrows);
	StringInfoData key;

	initStringInfo(&key);
	for (int row = 0; row < rows->nrows; row++)
	{
		row_key(st, run, rows, row, st->def->keys, &key);
		index_add(ix, key.data, key.len);
	}
	pfree(key.data);
	return ix;
}

/* the columns in which two rows differ, as a list of their numbers */
static List *
differing_columns(SyncTable *st, VerifyRun *run, const RowSet *source, int s,
				  const RowSet *target, int t)
{
	List	   *columns = NIL;

	for (int i = 0; i < st->def->ncols; i++)
	{
		int			alen;
		int			blen;
		const char *a = rowset_get(source, s, i, &alen);
		const char *b = rowset_get(target, t, i, &blen);

		if (!cells_equal(run, &run->rules[i], a, alen, b, blen))
			columns = lappend_int(columns, i);
	}
	return columns;
}

/* ---------------------------------------------------------------------
 * Candidates
 * ------------------------------------------------------------------- */

static void
add_candidate(VerifyRun *run, const char *cells, int len, bool raw)
{
	Candidate  *c;

	/* a row that moves while the table is walked is met again */
	if (run->cand_index == NULL)
		run->cand_index = index_create(run->cand_cxt, 256);
	else if (index_find(run->cand_index, cells, len) >= 0)
		return;
	index_add(run->cand_index, cells, len);

	if (run->ncand == run->maxcand)
	{
		run->maxcand = Max(256, run->maxcand * 2);
		if (run->cand == NULL)
			run->cand = MemoryContextAlloc(run->cand_cxt, sizeof(Candidate) * run->maxcand);
		else
			run->cand = repalloc(run->cand, sizeof(Candidate) * run->maxcand);
	}
	c = &run->cand[run->ncand++];
	memset(c, 0, sizeof(Candidate));
	c->cells = MemoryContextAlloc(run->cand_cxt, len + 1);
	memcpy(c->cells, cells, len);
	c->cells[len] = '\0';
	c->len = len;
	c->raw = raw;
	run->cand_bytes += 2 * len + sizeof(Candidate);
}

static void
add_open_keys(VerifyRun *run, KeySet *ks)
{
	for (int i = 0; (i = keyset_next_open(ks, i)) >= 0; i++)
	{
		int			len;
		const char *cells = keyset_cells(ks, i, &len);

		add_candidate(run, cells, len, false);
	}
}

static void
forget_candidates(VerifyRun *run)
{
	MemoryContextReset(run->cand_cxt);
	run->cand = NULL;
	run->cand_index = NULL;
	run->ncand = run->maxcand = 0;
	run->cand_bytes = 0;
	run->checking = false;
}

static void
begin_check(VerifyRun *run)
{
	run->checking = true;
	run->check_at = 0;
	run->round = 0;
}

/* to be written down, and perhaps repaired */
typedef struct Difference
{
	Candidate  *candidate;
	const char *kind;
	List	   *columns;
} Difference;

typedef struct CheckArg
{
	SyncTable  *st;
	CellIndex  *index;			/* of the candidates' cells */
	Candidate **candidate;		/* by number in index */
	bool		all;			/* a TRUNCATE, or keys that name nothing */
} CheckArg;

static bool
match_chunk(QueueChunk *chunk, CheckArg *check)
{
	SyncTable  *st = check->st;
	const char *p;
	const char *end;
	KeyRun		run;
	Datum		values[INDEX_MAX_KEYS];
	StringInfoData cells;

	/* links of a document's other tables name nothing that could be looked for */
	if (queue_chunk_is_link(chunk) != (st->def->doc != NULL))
		return true;
	if (st->def->doc != NULL && chunk->n != KEY_UNKNOWN && !document_has_link(st->def->doc, chunk->relid, chunk->layout))
		return true;
	if (chunk->n == KEY_TRUNCATE || chunk->n == KEY_UNKNOWN || chunk->layout != st->layout.id ||
		chunk->relid != st->relid ||
		!key_chunk_read(chunk->n, chunk->keys, chunk->len, &p, &end))
	{
		check->all = true;
		return false;
	}
	initStringInfo(&cells);
	key_run_start(&run, &st->layout);
	while (key_unpack(&run, &p, end, values))
	{
		int			i;

		resetStringInfo(&cells);
		reader_key_cells(st, values, &cells);
		i = index_find(check->index, cells.data, cells.len);
		if (i >= 0)
		{
			Candidate  *c = check->candidate[i];

			c->queued = true;
			if (!c->was_queued || FullTransactionIdPrecedes(chunk->id.xid, c->next_xid))
				c->queued_before = true;
		}
	}
	if (run.broken)
	{
		check->all = true;
		return false;
	}
	return true;
}

/* the queue may be much longer than memory is large */
static bool
look_at_chunk(QueueChunk *chunk, void *arg)
{
	static MemoryContext cxt = NULL;
	MemoryContext oldcxt;
	bool		going;

	if (cxt == NULL)
		cxt = AllocSetContextCreate(TopMemoryContext, "crate_sync verify chunk",
									ALLOCSET_DEFAULT_SIZES);
	oldcxt = MemoryContextSwitchTo(cxt);
	going = match_chunk(chunk, arg);
	MemoryContextSwitchTo(oldcxt);
	MemoryContextReset(cxt);
	return going;
}

static void
look_at_queue(SyncTable *st, void *arg)
{
	((CheckArg *) arg)->st = st;
	if (st->def->doc == NULL)
		queue_look(st->relid, GetActiveSnapshot(), look_at_chunk, arg);
	for (int i = 0; st->def->doc != NULL && i < list_length(st->def->doc->relids); i++)
		queue_look(list_nth_oid(st->def->doc->relids, i), GetActiveSnapshot(), look_at_chunk, arg);
}

/* writes differences down and queues their keys, if that is wanted */
static void
record_differences(SyncTable *st, VerifyRun *run, List *differences)
{
	MemoryContext oldcxt = CurrentMemoryContext;
	Oid			types[4] = {INT4OID, JSONBOID, TEXTOID, NAMEARRAYOID};
	ListCell   *lc;
	StringInfoData packed;
	KeyRun		keys;
	int			nkeys = 0;
	bool		isnull;

	if (run->repair)
		cs_point("before repair");
	initStringInfo(&packed);
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	foreach(lc, differences)
	{
		Difference *d = lfirst(lc);
		Datum		values[4];
		char		nulls[5] = "    ";
		Datum	   *names = palloc(sizeof(Datum) * (list_length(d->columns) + 1));
		int			n = 0;
		ListCell   *col;

		if (run->found->n >= DIFFERENCES || run->found->arena.len > DIFFERENCE_BYTES)
			break;
		foreach(col, d->columns)
			names[n++] = DirectFunctionCall1(namein,
											 CStringGetDatum(st->def->columns[lfirst_int(col)].name));
		values[0] = Int32GetDatum(st->spec.mirror_id);
		values[1] = reader_cells_to_jsonb(st, d->candidate->cells);
		values[2] = CStringGetTextDatum(d->kind);
		values[3] = PointerGetDatum(construct_array(names, n, NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR));
		if (n == 0)
			nulls[3] = 'n';
		SPI_execute_with_args("INSERT INTO crate_sync.difference (mirror_id, key, kind, columns) "
							  "VALUES ($1, $2, $3, $4) RETURNING difference_id", 4, types, values, nulls, false, 0);
		if (SPI_processed == 1)
			d->candidate->difference_id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
																	  SPI_tuptable->tupdesc, 1, &isnull));
		index_add(run->found, d->candidate->cells, d->candidate->len);
	}

	key_run_start(&keys, &st->layout);
	reader_begin_cells(st);
	for (int i = 0; run->repair && i < list_length(differences); i++)
	{
		Candidate  *c = ((Difference *) list_nth(differences, i))->candidate;
		Datum		values[INDEX_MAX_KEYS];
		RowSet	   *row;
		char	   *reason;

		if (c->raw)
			continue;
		row = reader_key_rowset(st, c->cells);
		if (!reader_key_from_cells(st, row, 0, values, &reason))
			continue;
		if (!key_pack(&keys, &packed, values))
		{
			/* this chunk is full, or the key longer than any */
			if (nkeys > 0)
				queue_put(st->relid, st->def->doc != NULL, st->layout.id, packed.data, packed.len, nkeys);
			nkeys = 0;
			resetStringInfo(&packed);
			key_run_start(&keys, &st->layout);
			if (!key_pack(&keys, &packed, values))
			{
				if (key_pack_alone(&st->layout, &packed, values))
					queue_put_key(st->relid, st->def->doc != NULL, st->layout.id, packed.data, packed.len);
				resetStringInfo(&packed);
				continue;
			}
		}
		nkeys++;
	}
	reader_end_cells();
	if (nkeys > 0)
		queue_put(st->relid, st->def->doc != NULL, st->layout.id, packed.data, packed.len, nkeys);
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(oldcxt);

	/* what the source cannot spell cannot be queued: it goes as in a sweep */
	for (int i = 0; run->repair && i < list_length(differences); i++)
	{
		Candidate  *c = ((Difference *) list_nth(differences, i))->candidate;
		Pass	   *pass;

		if (!c->raw)
			continue;
		pass = pass_create(st, PASS_SWEEP);
		pass->load_pos = -1;
		lane_begin_read(pass);
		reader_put_raw_delete(st, pass, reader_key_rowset(st, c->cells), 0);
		pass->fed = true;
		pass_settle(st, pass, 0);
	}
	foreach(lc, differences)
	{
		Difference *d = lfirst(lc);

		d->candidate->found = true;
		d->candidate->settled = !run->repair;
	}
	run->ndifferent += list_length(differences);
}

/* there is no difference, or no more */
static void
settle_equal(VerifyRun *run, Candidate *c)
{
	c->settled = true;
	if (!c->found)
		return;
	run->nrepaired++;
	if (c->difference_id != 0)
		run->repaired[run->n_repaired++] = Int64GetDatum(c->difference_id);
}

static void
record_repaired(VerifyRun *run)
{
	Oid			types[1] = {INT8ARRAYOID};
	Datum		values[1];

	if (run->n_repaired == 0)
		return;
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	values[0] = PointerGetDatum(construct_array(run->repaired, run->n_repaired, INT8OID, 8,
												FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	SPI_execute_with_args("UPDATE crate_sync.difference SET repaired = true WHERE difference_id IN "
						  "(SELECT difference_id FROM crate_sync.difference WHERE difference_id = ANY ($1) "
						  "FOR UPDATE SKIP LOCKED)", 1, types, values, NULL, false, 0);
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(run->step_cxt);
}

/* what is true of one candidate, both sides and the queue having been read */
static Difference *
judge(SyncTable *st, VerifyRun *run, Candidate *c, const RowSet *source, int s,
	  const RowSet *target, int t, bool unreadable)
{
	Difference *d;
	List	   *columns = NIL;
	const char *kind = NULL;

	if (unreadable)
		kind = t >= 0 ? "different" : "missing";
	else if (s >= 0 && t < 0)
		kind = "missing";
	else if (s < 0 && t >= 0)
		kind = "extra";
	else if (s >= 0)
	{
		columns = differing_columns(st, run, source, s, target, t);
		if (columns != NIL)
			kind = "different";
	}

	if (kind == NULL)
	{
		settle_equal(run, c);
		return NULL;
	}
	if (c->queued)
	{
		if (!c->was_queued)
		{
			c->was_queued = true;
			c->next_xid = ReadNextFullTransactionId();
		}
		else if (!c->queued_before && !failed_key_known(st, c->cells, c->len))
		{
			/* changes all the time, and was written as a whole meanwhile */
			settle_equal(run, c);
		}
		return NULL;
	}
	if (c->raw && c->found && !lanes_idle(st))
		return NULL;			/* its delete is on its way */
	if (c->found)
	{
		c->settled = true;		/* repair did not help */
		return NULL;
	}
	if (index_find(run->found, c->cells, c->len) >= 0)
	{
		c->settled = true;		/* a row that has moved was met twice */
		return NULL;
	}
	d = palloc(sizeof(Difference));
	d->candidate = c;
	d->kind = kind;
	d->columns = columns;
	return d;
}

static bool
check_step(SyncTable *st, VerifyRun *run)
{
	Candidate **batch = palloc(sizeof(Candidate *) * run->check_keys);
	int			n = 0;
	int			end = run->check_at;
	RowSet	   *keys;
	RowSet	   *source;
	RowSet	   *target;
	KeySet	   *ks;
	CheckArg	check;
	int		   *cols;
	TargetResult res;
	ReadOutcome read = READ_OK;
	CellIndex  *sources;
	CellIndex  *targets;
	StringInfoData key;
	List	   *differences = NIL;
	bool		unanswered = false;

	while (end < run->ncand && n < run->check_keys)
	{
		if (!run->cand[end].settled)
			batch[n++] = &run->cand[end];
		end++;
	}
	if (n == 0)
	{
		bool		open = false;

		for (int i = 0; i < run->ncand && !open; i++)
			open = !run->cand[i].settled;
		if (!open)
		{
			forget_candidates(run);
			return true;
		}
		/* the rest is on its way; look again in a moment */
		run->retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													Min(1000, 20 << Min(run->round, 6)));
		run->round++;
		run->check_at = 0;
		return false;
	}

	/* the target first */
	keys = rowset_create(CurrentMemoryContext, st->def->nkeys);
	target = rowset_create(CurrentMemoryContext, st->def->ncols);
	source = rowset_create(CurrentMemoryContext, st->def->ncols);
	cols = palloc(sizeof(int) * st->def->ncols);
	for (int i = 0; i < st->def->ncols; i++)
		cols[i] = i;
	for (int i = 0; i < n; i++)
		reader_add_key_row(st, keys, batch[i]->cells);
	memset(&res, 0, sizeof(res));
	the_target->ops->fetch(the_target, &st->def->target, cols, st->def->ncols, keys, 0, n, true,
						   target, &res);
	if (res.outcome != TARGET_OK)
	{
		if (!target_failed(st, run, &res))
			return false;
		if (n > 1)
		{
			run->check_keys = n / 2;
			return true;
		}
		/* a key that it does not take, or a row too long to be read back */
		unanswered = true;
	}
	run->attempts = 0;

	/* then the source, and in the same snapshot the queue */
	cs_point("verify check");
	ks = keyset_create(CurrentMemoryContext, st);
	check.index = index_create(CurrentMemoryContext, n);
	check.candidate = batch;
	check.all = false;
	StartTransactionCommand();
	MemoryContextSwitchTo(run->step_cxt);
	reader_begin_cells(st);
	for (int i = 0; i < n; i++)
	{
		Datum		values[INDEX_MAX_KEYS];
		char	   *reason;

		batch[i]->queued = batch[i]->queued_before = false;
		index_add(check.index, batch[i]->cells, batch[i]->len);
		if (batch[i]->raw)
			continue;
		if (reader_key_from_cells(st, keys, i, values, &reason))
			keyset_add(ks, values);
		else
			batch[i]->refused = reason != NULL;
	}
	reader_end_cells();
	CommitTransactionCommand();
	MemoryContextSwitchTo(run->step_cxt);
	read = reader_collect_keys(st, ks, source, PIECE_BYTES, look_at_queue, &check);
	if (read == READ_TROUBLE || read == READ_LATER)
		return false;
	if (read != READ_OK && n > 1)
	{
		run->check_keys = Max(1, n / (bounded_cut() ? 64 : 2));
		return true;
	}
	if (read == READ_REFUSED)
	{
		rowset_reset(source);
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		look_at_queue(st, &check);
		PopActiveSnapshot();
		CommitTransactionCommand();
		MemoryContextSwitchTo(run->step_cxt);
	}

	StartTransactionCommand();
	MemoryContextSwitchTo(run->step_cxt);
	sources = index_rows(st, run, source);
	targets = index_rows(st, run, target);
	initStringInfo(&key);
	run->n_repaired = 0;
	for (int i = 0; i < n; i++)
	{
		Difference *d;

		if (check.all)
			batch[i]->queued = batch[i]->queued_before = true;
		row_key(st, run, keys, i, NULL, &key);
		d = judge(st, run, batch[i], source, index_find(sources, key.data, key.len),
				  target, unanswered && res.outcome == TARGET_TOO_BIG ? 0 :
				  index_find(targets, key.data, key.len),
				  read == READ_REFUSED || batch[i]->refused || (unanswered && res.outcome == TARGET_TOO_BIG));
		if (d != NULL)
			differences = lappend(differences, d);
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(run->step_cxt);
	record_repaired(run);
	if (differences != NIL)
		record_differences(st, run, differences);
	run->check_at = end;
	run->check_keys = Min(CHECK_KEYS, run->check_keys * 2);
	return true;
}

/* ---------------------------------------------------------------------
 * The walks
 * ------------------------------------------------------------------- */

/* has searches see what was acknowledged, now and then; false: not now */
static bool
refresh_target(SyncTable *st, VerifyRun *run)
{
	TargetResult res;
	TimestampTz now = GetCurrentTimestamp();

	if (run->refreshed && (!st->unrefreshed || now < run->next_refresh))
		return true;
	memset(&res, 0, sizeof(res));
	the_target->ops->refresh(the_target, &st->def->target, &res);
	if (res.outcome != TARGET_OK)
	{
		if (target_failed(st, run, &res))
			verify_fail(st, run, res.message);
		return false;
	}
	st->unrefreshed = false;
	run->refreshed = true;
	run->next_refresh = TimestampTzPlusMilliseconds(now, 500);
	return true;
}

static bool
rows_step(SyncTable *st, VerifyRun *run)
{
	RowSet	   *source = rowset_create(CurrentMemoryContext, st->def->ncols);
	RowSet	   *target = rowset_create(CurrentMemoryContext, st->def->ncols);
	RowSet	   *keys = rowset_create(CurrentMemoryContext, st->def->nkeys);
	int		   *cols = palloc(sizeof(int) * st->def->ncols);
	KeySet	   *unread;
	bool		restarted;
	TargetResult res;
	CellIndex  *targets;
	StringInfoData key;

	if (!refresh_target(st, run))
		return false;
	st->feed_rel = run->rel;
	st->feed_filenode = run->filenode;
	st->feed_pos = run->pos;
	st->feed_blocks = run->blocks;
	if (!reader_collect_range(st, source, run->piece_rows, PIECE_BYTES, run->step_cxt,
							  &unread, &restarted))
		return false;
	cs_point("verify piece");
	if (restarted)
		run->countable = false; /* rows may be met twice */
	if (unread != NULL)
	{
		run->countable = false;
		add_open_keys(run, unread);
	}

	for (int i = 0; i < st->def->ncols; i++)
		cols[i] = i;
	memset(&res, 0, sizeof(res));
	if (source->nrows > 0)
	{
		for (int k = 0; k < st->def->nkeys; k++)
		{
			const CellColumn *from = &source->cols[st->def->keys[k]];

			appendBinaryStringInfo(&keys->cols[k].data, from->data.data, from->data.len);
			if (keys->maxrows < source->nrows)
				keys->cols[k].end = repalloc(keys->cols[k].end, sizeof(uint32) * source->nrows);
			memcpy(keys->cols[k].end, from->end, sizeof(uint32) * source->nrows);
		}
		keys->maxrows = Max(keys->maxrows, source->nrows);
		keys->nrows = source->nrows;
		the_target->ops->fetch(the_target, &st->def->target, cols, st->def->ncols,
							   keys, 0, keys->nrows, false, target, &res);
		if (res.outcome != TARGET_OK)
		{
			if (!target_failed(st, run, &res))
				return false;
			if (source->nrows > 1)
			{
				run->piece_rows = source->nrows / 2;
				return true;
			}
			rowset_reset(target);	/* a candidate */
		}
	}
	run->attempts = 0;

	StartTransactionCommand();
	MemoryContextSwitchTo(run->step_cxt);
	initStringInfo(&key);
	targets = index_rows(st, run, target);
	for (int row = 0; row < source->nrows; row++)
	{
		int			t;

		row_key(st, run, keys, row, NULL, &key);
		t = index_find(targets, key.data, key.len);
		if (t >= 0)
			run->matched++;
		if (t < 0 || differing_columns(st, run, source, row, target, t) != NIL)
		{
			row_cells(st, keys, row, NULL, &key);
			add_candidate(run, key.data, key.len, false);
		}
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(run->step_cxt);

	run->rows += source->nrows;
	run->rel = st->feed_rel;
	run->filenode = st->feed_filenode;
	run->pos = st->feed_pos;
	run->blocks = st->feed_blocks;
	run->piece_rows = Min(PIECE_ROWS, run->piece_rows * 2);
	if (st->feed_done)
	{
		run->stage = VERIFY_COUNT;
		if (run->ncand > 0)
			begin_check(run);
	}
	return true;
}

/*
 * Every row of the source was found in the target, each once, and nothing was
 * written there meanwhile: then it is enough to count.
 */
static void
count_step(SyncTable *st, VerifyRun *run)
{
	TargetResult res;
	const TargetTable *table = &st->def->target;
	QueuePlace	place = {0};
	QueueOf		of = {.keys = &st->relid,.nkeys = 1};
	bool		queued;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	/* of any document's, as its tables are many and this is rare */
	queued = queue_has_before(ReadNextFullTransactionId(), st->def->doc ? NULL : &of, NULL, &place);
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(run->step_cxt);

	run->stage = VERIFY_KEYS;
	if (queued || !run->countable || run->submitted != st->n_submitted || !lanes_idle(st))
		return;
	memset(&res, 0, sizeof(res));
	the_target->ops->statement(the_target,
							   psprintf("SELECT count(*) FROM %s", the_target->ops->sql_name ?
										the_target->ops->sql_name(table->schema, table->name) :
										table->qualified), NULL, &res);
	if (res.outcome == TARGET_OK && res.nrows == 1 && res.ncols == 1 &&
		strtoll(res.cells[0][0], NULL, 10) == run->matched)
		run->stage = VERIFY_END;
}

static bool
keys_step(SyncTable *st, VerifyRun *run)
{
	RowSet	   *page = rowset_create(CurrentMemoryContext, st->def->nkeys);
	KeySet	   *ks = keyset_create(CurrentMemoryContext, st);
	RowSet	   *after = run->after ? reader_key_rowset(st, run->after) : NULL;
	StringInfoData cells;
	TargetResult res;
	ReadOutcome read;

	memset(&res, 0, sizeof(res));
	the_target->ops->page(the_target, &st->def->target, st->def->target.keys, st->def->nkeys,
						  after, run->page_keys, run->after == NULL, page, &res);
	if (res.outcome != TARGET_OK)
	{
		if (target_failed(st, run, &res))
			verify_fail(st, run, res.message);
		return false;
	}
	run->attempts = 0;
	cs_point("verify page");

	initStringInfo(&cells);
	StartTransactionCommand();
	MemoryContextSwitchTo(run->step_cxt);
	reader_begin_cells(st);
	for (int row = 0; row < page->nrows; row++)
	{
		Datum		values[INDEX_MAX_KEYS];
		char	   *reason;

		if (reader_key_from_cells(st, page, row, values, &reason))
			keyset_add(ks, values);
		else
		{
			row_cells(st, page, row, NULL, &cells);
			add_candidate(run, cells.data, cells.len, reason == NULL);
		}
	}
	reader_end_cells();
	CommitTransactionCommand();
	MemoryContextSwitchTo(run->step_cxt);
	if (keyset_nopen(ks) > 0)
	{
		read = reader_collect_keys(st, ks, NULL, 0, NULL, NULL);
		if (read == READ_TROUBLE || read == READ_LATER)
			return false;
		/* one that cannot be read is found among the others one by one */
		add_open_keys(run, ks);
	}

	if (page->nrows < run->page_keys)
		run->stage = VERIFY_END;
	else
	{
		row_cells(st, page, page->nrows - 1, NULL, &cells);
		if (run->after != NULL)
			pfree(run->after);
		run->after = MemoryContextStrdup(run->cxt, cells.data);
	}
	if (run->stage == VERIFY_END && run->ncand > 0)
		begin_check(run);
	return true;
}

/* ---------------------------------------------------------------------
 * The end
 * ------------------------------------------------------------------- */

static void
finish(SyncTable *st, VerifyRun *run)
{
	Oid			types[2] = {INT4OID, INT4OID};
	Datum		values[2] = {Int32GetDatum(st->spec.mirror_id),
	Int32GetDatum(Max(0, DIFFERENCES - run->found->n))};
	int64		parked = 0;
	int64		left;
	bool		isnull;

	/* what was refused is a difference, whatever the row looks like now */
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	SPI_execute_with_args("SELECT pg_catalog.count(*) FROM crate_sync.failed f WHERE f.mirror_id = $1 AND NOT EXISTS "
						  "(SELECT FROM crate_sync.difference d WHERE d.mirror_id = $1 AND d.key = f.key)",
						  1, types, values, NULL, false, 0);
	if (SPI_processed == 1)
		parked = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	if (parked > 0)
		SPI_execute_with_args("INSERT INTO crate_sync.difference (mirror_id, key, kind) "
							  "SELECT f.mirror_id, f.key, CASE f.action WHEN 'delete' THEN 'extra' ELSE 'different' END "
							  "FROM crate_sync.failed f WHERE f.mirror_id = $1 AND NOT EXISTS "
							  "(SELECT FROM crate_sync.difference d WHERE d.mirror_id = $1 AND d.key = f.key) LIMIT $2",
							  2, types, values, NULL, false, 0);
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();

	left = run->ndifferent - run->nrepaired + parked;
	keep_outcome(st, run, run->ndifferent + parked, left == 0, NULL);
	ereport(LOG,
			(errmsg("crate_sync: verify of %s.%s finished: " INT64_FORMAT " rows compared, " INT64_FORMAT " differences found%s",
					st->def->schemaname, st->def->relname, run->rows, run->ndifferent + parked,
					run->repair ? psprintf(", " INT64_FORMAT " left after repair", left) : ""),
			 run->ndifferent > run->found->n ?
			 errdetail("Only the first %d are in crate_sync.differences.", run->found->n) : 0));
	st->verify_finished = true;
	st->verify_ok = left == 0;
	st->n_differences = left;
	verify_over(st, run->verify_no);
}

static bool
step(SyncTable *st)
{
	VerifyRun  *run = st->verify;
	bool		more;

	if (run == NULL)
		run = st->verify = run_create(st);
	if (GetCurrentTimestamp() < run->retry_at)
		return false;
	MemoryContextReset(run->step_cxt);
	MemoryContextSwitchTo(run->step_cxt);

	if (!run->checking && (run->ncand >= CANDIDATES || run->cand_bytes > CANDIDATE_BYTES))
		begin_check(run);
	if (run->checking)
		more = check_step(st, run);
	else
	{
		more = true;
		switch (run->stage)
		{
			case VERIFY_ROWS:
				more = rows_step(st, run);
				break;
			case VERIFY_COUNT:
				count_step(st, run);
				break;
			case VERIFY_KEYS:
				more = keys_step(st, run);
				break;
			case VERIFY_END:
				finish(st, run);
				break;
		}
	}

	run = st->verify;			/* it may be over */
	if (run != NULL && GetCurrentTimestamp() >= run->next_progress)
	{
		st->load_rows = run->rows;
		st->dirty = true;
		st->verify_changed = true;
		run->next_progress = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 1000);
	}
	return more;
}

bool
verify_step(SyncTable *st)
{
	MemoryContext oldcxt = CurrentMemoryContext;
	ErrorData  *volatile error = NULL;
	volatile bool more = false;

	/* what goes wrong in here is no reason for other tables to wait */
	PG_TRY();
	{
		more = step(st);
	}
	PG_CATCH();
	{
		error = worker_catch(oldcxt);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(oldcxt);
	if (error != NULL && bounded_cut() && st->verify != NULL &&
		(st->verify->page_keys > 1 || st->verify->check_keys > 1))
	{
		/* for fewer keys it may do */
		st->verify->page_keys = Max(1, st->verify->page_keys / 64);
		st->verify->check_keys = Max(1, st->verify->check_keys / 64);
		st->verify->retry_at = code_retry_at(st);
		FreeErrorData(error);
	}
	else if (error != NULL)
	{
		if (st->verify == NULL || ++st->verify->errors >= ERRORS)
		{
			VerifyRun	none = {.verify_no = st->spec.verify_no};

			verify_fail(st, st->verify ? st->verify : &none, error->message);
		}
		else
			st->verify->retry_at = Max(backoff(st->verify->errors + 3), code_retry_at(st));
		FreeErrorData(error);
	}
	return more;
}
