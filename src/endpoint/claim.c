/*-------------------------------------------------------------------------
 *
 * claim.c
 *		One live writer per target table.
 *
 * The target holds a row per mirrored table that names the database which
 * writes it, and a row per writer that counts up while it is alive.  Who
 * finds another's name there writes nothing.  Rows are written under the
 * fence of the claim table itself, so that of two who claim at one time one
 * finds the fence raised and looks again.
 *
 * A data directory that was copied has everything of the original's but two
 * things: the place where it lies, and the beats since the copy was made.  Two
 * copies can even lie in the same place, on machines or at times of their own.
 * So each life of a worker has a name, its incarnation, which is written down
 * before the beat carries it; who finds a beat there that carries a name it
 * does not know, or that is ahead of its own, knows that a twin was at work.
 * Who starts in the place that the claim names, and finds its own beat, goes on
 * at once.  Anybody else first waits whether the beat goes on, which means that
 * another one is alive.  If it does not, the right of a promoted standby, a
 * recovery to a point in time (both are on a newer timeline) and a directory
 * that was moved (no beat is missing) is taken for granted; anything else is
 * an old copy and needs adopt().
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include <sys/stat.h>
#include <unistd.h>

#include "access/xact.h"
#include "access/xlog.h"
#include "base/point.h"
#include "base/session.h"
#include "base/settings.h"
#include "base/text.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "common/hashfn.h"
#include "endpoint/claim.h"
#include "executor/spi.h"
#include "pgstat.h"
#include "shared/wake.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#define BEAT_INTERVAL_MS 5000
/* who has not been heard for that long is not alive */
#define BEAT_SILENCE_MS (3 * BEAT_INTERVAL_MS)
/* more than anyone counts without being heard at the target */
#define BEAT_TAKEOVER 1000000

enum
{
	C_TARGET, C_SYSTEM, C_DATABASE, C_TIMELINE, C_TOKEN, C_PLACE, C_BEAT, C_NATTS
};

static TargetColumn claim_columns[C_NATTS] = {
	{"target", "TEXT", NULL, CELL_TEXT, true},
	{"system_identifier", "TEXT", NULL, CELL_TEXT, false},
	{"database", "TEXT", NULL, CELL_TEXT, false},
	{"timeline", "BIGINT", NULL, CELL_INT, false},
	{"token", "TEXT", NULL, CELL_TEXT, false},
	{"place", "TEXT", NULL, CELL_TEXT, false},
	{"beat", "BIGINT", NULL, CELL_INT, false},
};
static int	claim_keys[1] = {C_TARGET};
static int	claim_cols[C_NATTS] = {0, 1, 2, 3, 4, 5, 6};
static TargetTable claim_target = {
	.schema = "crate_sync",
	.name = "claim",
	.qualified = "\"crate_sync\".\"claim\"",
	.ncols = C_NATTS,
	.cols = claim_columns,
	.nkeys = 1,
	.keys = claim_keys,
	.ddl_clustered = "CLUSTERED INTO 1 SHARDS",
};

typedef struct Claim
{
	bool		found;
	char	   *cell[C_NATTS];	/* text, palloc'd */
} Claim;

/* ourselves */
static char our_system[32];
static char our_database[64];
static char our_token[33];
static char our_place[33];
static char our_former_place[33];	/* as earlier versions made it */
static char our_incarnation[33];
static char known_incarnation[2][33];	/* of our former lives, as written down; "": none */
static int64 our_beat = 0;		/* the last one written down here */
static int64 beat_acked = 0;	/* the last one that arrived there */
static int64 our_timeline = 0;
static bool successor = false;

/* what is known of the target */
static bool table_ready = false;
static bool place_taken = false;	/* the beat there carries our incarnation */
static int64 beat_epoch = 0;	/* of our own lane of the claim table, see beat_lane() */

/* another's beat that is being watched */
typedef struct WatchedBeat
{
	uint64		key;			/* hash of its row's */
	int64		beat;
	TimestampTz since;			/* 0: a free place */
} WatchedBeat;

static WatchedBeat watched[16];
static int64 last_beat_found = 0;	/* of the place that a claim named */

static TimestampTz next_beat = 0;
static int	adopting = 0;		/* the adopt_no to carry out, or 0 */

static void
hash_place(char *place, const char *text)
{
	snprintf(place, sizeof(our_place), "%016llx",
			 (unsigned long long) hash_bytes_extended((const unsigned char *) text, strlen(text), 0));
}

/*
 * Where this data directory lies: the same after a restart, and whatever the
 * host is called or the device numbered then.
 */
static void
find_place(void)
{
	struct stat st;
	char		host[256] = "";

	gethostname(host, sizeof(host) - 1);
	memset(&st, 0, sizeof(st));
	(void) stat(psprintf("%s/PG_VERSION", DataDir), &st);
	hash_place(our_place, psprintf("%s %llu", DataDir, (unsigned long long) st.st_ino));
	hash_place(our_former_place, psprintf("%s %s %llu %llu", host, DataDir, (unsigned long long) st.st_dev,
										  (unsigned long long) st.st_ino));
}

static bool
place_is_ours(const char *place)
{
	return strcmp(place, our_place) == 0 || strcmp(place, our_former_place) == 0;
}

void
claim_init(void)
{
	bool		isnull;
	Oid			types[1] = {OIDOID};
	Datum		values[1] = {ObjectIdGetDatum(MyDatabaseId)};
	uint64		random[2];

	if (!pg_strong_random(random, sizeof(random)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random values")));
	snprintf(our_incarnation, sizeof(our_incarnation), "%016llx%016llx",
			 (unsigned long long) random[0], (unsigned long long) random[1]);
	snprintf(our_system, sizeof(our_system), UINT64_FORMAT, GetSystemIdentifier());
	snprintf(our_database, sizeof(our_database), "%u", MyDatabaseId);
	our_timeline = worker_timeline();
	find_place();
	SPI_connect();

	/*
	 * A token is made once; copies have it too, another CREATE EXTENSION has
	 * not.  A copy within the server, which lies in the same place, gets one of
	 * its own, and beats of its own with it.
	 */
	SPI_execute_with_args("UPDATE crate_sync.worker_state SET database = $1, "
						  "token = CASE WHEN is_new THEN pg_catalog.md5(pg_catalog.gen_random_uuid()::pg_catalog.text) ELSE token END, "
						  "beat = CASE WHEN is_new THEN 0 ELSE beat END, "
						  "beat_acked = CASE WHEN is_new THEN 0 ELSE beat_acked END, "
						  "incarnation = CASE WHEN is_new THEN NULL ELSE incarnation END, "
						  "incarnation_acked = CASE WHEN is_new THEN NULL ELSE incarnation_acked END "
						  "FROM (SELECT token IS NULL OR database <> $1 AS is_new FROM crate_sync.worker_state) AS n "
						  "RETURNING token, beat, beat_acked, incarnation, incarnation_acked",
						  1, types, values, NULL, false, 1);
	if (SPI_processed == 1)
	{
		strlcpy(our_token, SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1),
				sizeof(our_token));
		our_beat = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
											   SPI_tuptable->tupdesc, 2, &isnull));
		beat_acked = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
												 SPI_tuptable->tupdesc, 3, &isnull));
		for (int i = 0; i < lengthof(known_incarnation); i++)
		{
			char	   *known = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 4 + i);

			strlcpy(known_incarnation[i], known ? known : "", sizeof(known_incarnation[i]));
		}
	}
	SPI_finish();
	strlcpy(claim_target.token, our_token, sizeof(claim_target.token));
	successor = our_beat > 0;
}

const char *
claim_token(void)
{
	return our_token;
}

bool
claim_is_successor(void)
{
	return successor;
}

void
claim_forget(void)
{
	table_ready = place_taken = false;
	beat_epoch = 0;
	memset(watched, 0, sizeof(watched));
	next_beat = 0;
}

void
claim_adopt(int adopt_no)
{
	if (adopting != adopt_no)
		ereport(LOG,
				(errmsg("crate_sync: adopting the target's tables")));
	adopting = adopt_no;
}

bool
claim_adopting(void)
{
	return adopting != 0;
}

void
claim_adopted(void)
{
	Oid			types[1] = {INT4OID};
	Datum		values[1] = {Int32GetDatum(adopting)};

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	SPI_execute_with_args("UPDATE crate_sync.worker_state SET adopt_done = $1", 1, types, values,
						  NULL, false, 0);
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	adopting = 0;
}

static void
put_text(RowSet *rs, int col, const char *text)
{
	types_json_string(rowset_cell(rs, col), text, strlen(text));
}

static char *
table_key(const char *schema, const char *name)
{
	return psprintf("%s.%s", target_quote_ident(schema), target_quote_ident(name));
}

static char *
beat_key(const char *token, const char *place)
{
	/* a copy has the same token: each place has a beat of its own */
	return psprintf("beat of %s at %s", token, place);
}

static bool
ensure_claim_table(TargetResult *res)
{
	bool		created = false;
	bool		altered = false;

	if (table_ready)
		return true;
	the_target->ops->ensure_table(the_target, &claim_target, true, &created, &altered, res);
	if (res->outcome != TARGET_OK)
		return false;
	table_ready = true;
	if (created)
	{
		dlist_iter	it;

		/* the first one here, or the target was wiped: look at all tables */
		dlist_foreach(it, &sync_tables)
			dlist_container(SyncTable, node, it.cur)->target_ready = false;
	}
	return true;
}

static bool
fetch_claim(const char *key, Claim *claim, TargetResult *res)
{
	RowSet	   *keys = rowset_create(CurrentMemoryContext, 1);
	RowSet	   *out = rowset_create(CurrentMemoryContext, C_NATTS);

	memset(claim, 0, sizeof(Claim));
	put_text(keys, 0, key);
	rowset_end_row(keys);
	the_target->ops->fetch(the_target, &claim_target, claim_cols, C_NATTS, keys, 0, 1, true, out, res);
	if (res->outcome == TARGET_OK && out->nrows > 0)
	{
		claim->found = true;
		for (int i = 0; i < C_NATTS; i++)
		{
			int			len;
			const char *cell = rowset_get(out, 0, i, &len);

			/* what we write needs no escapes but in the key, which is known */
			claim->cell[i] = len > 1 && cell[0] == '"' ? pnstrdup(cell + 1, len - 2) : pnstrdup(cell, len);
		}
	}
	rowset_free(keys);
	rowset_free(out);
	if (res->outcome == TARGET_OK)
		return true;
	/* it may be gone: make it anew before the next look */
	table_ready = false;
	beat_epoch = 0;
	return false;
}

/*
 * Claims are written in lane 0 of the claim table, whose fence is raised by
 * everyone who does; beats in a lane that only we and copies of us have, so
 * that writers do not disturb each other by being alive.
 */
static int
beat_lane(void)
{
	return 1 + hash_bytes((const unsigned char *) our_token, strlen(our_token)) % 1000000;
}

/*
 * Has somebody taken a table over?  A writer with nothing to send finds no
 * fence raised; so with each beat the claim of one table is looked at.
 */
static void
look_at_a_claim(void)
{
	static int	turn = 0;
	int			n = 0;
	dlist_iter	it;

	turn++;
	dlist_foreach(it, &sync_tables)
		n += dlist_container(SyncTable, node, it.cur)->target_ready;
	if (n == 0)
		return;
	n = turn % n;
	dlist_foreach(it, &sync_tables)
	{
		SyncTable  *st = dlist_container(SyncTable, node, it.cur);

		if (!st->target_ready || n-- > 0)
			continue;
		if (claim_is_anothers(st))
			st->target_ready = false;
		return;
	}
}

/* one request on the claim table, waited for; BUSY: the fence was raised */
static bool
claim_request(TargetRequestKind kind, RowSet *rows, int lane, int64 epoch, TargetResult *res)
{
	TargetRequest req;
	bool		ok;
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), cs_request_timeout);

	memset(&req, 0, sizeof(req));
	req.kind = kind;
	req.table = &claim_target;
	req.lane = lane;
	req.epoch = epoch;
	req.rows = rows;
	req.hi = rows->nrows;
	/* a load keeps all connections at work, a table in trouble for long */
	req.beside = cs_connections + 1;
	while (!the_target->ops->submit(the_target, &req))
	{
		if (GetCurrentTimestamp() > deadline)
		{
			res->outcome = TARGET_UNKNOWN;
			res->message = "no connection became free";
			return false;
		}
		CHECK_FOR_INTERRUPTS();
		target_idle();
		the_target->ops->poll(the_target, 10, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
	while (!req.done)
	{
		CHECK_FOR_INTERRUPTS();
		target_idle();
		the_target->ops->poll(the_target, 200, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);	/* or the sockets would never be looked at */
	}
	ok = req.outcome == TARGET_OK && req.nwritten == rows->nrows;
	if (!ok)
	{
		res->outcome = req.outcome == TARGET_OK ? TARGET_BUSY : req.outcome;
		strlcpy(res->code, req.code, sizeof(res->code));
		res->message = pstrdup(req.message ? req.message : "somebody else writes claims");
	}
	target_request_reset(&req);
	SetLatch(MyLatch);			/* whoever else it was set for hears of it now */
	return ok;
}

static bool
write_claim(const char *key, const char *place, int lane, int64 epoch, TargetResult *res)
{
	RowSet	   *rs = rowset_create(CurrentMemoryContext, C_NATTS);
	bool		ok;

	put_text(rs, C_TARGET, key);
	put_text(rs, C_SYSTEM, our_system);
	put_text(rs, C_DATABASE, our_database);
	appendStringInfo(rowset_cell(rs, C_TIMELINE), INT64_FORMAT, our_timeline);
	put_text(rs, C_TOKEN, our_token);
	put_text(rs, C_PLACE, place);
	appendStringInfo(rowset_cell(rs, C_BEAT), INT64_FORMAT, our_beat);
	rowset_end_row(rs);
	ok = claim_request(TARGET_UPSERT, rs, lane, epoch, res);
	rowset_free(rs);
	return ok;
}

/* takes a row of the claim table away */
static void
delete_claim(const char *key, int lane, int64 epoch, TargetResult *res)
{
	RowSet	   *rs = rowset_create(CurrentMemoryContext, 1);

	put_text(rs, 0, key);
	rowset_end_row(rs);
	claim_request(TARGET_DELETE, rs, lane, epoch, res);
	rowset_free(rs);
}

static bool
raise_claim_fence(int lane, int64 *epoch, TargetResult *res)
{
	the_target->ops->raise_fence(the_target, &claim_target, lane, epoch, res);
	return res->outcome == TARGET_OK;
}

/*
 * The target is older than we left it: what has arrived since is gone.  That is
 * written down before the next beat covers it up.
 */
static void
target_was_restored(int64 found)
{
	ereport(LOG,
			(errmsg("crate_sync: the target is older than it was left: all tables are resynced")));
	load_all_again("the target is older than it was left");
	state_ack(true);
	beat_acked = found;
	next_beat = 0;
}

/* does another's beat go on?  FOREIGN: it does; OURS_AGAIN: nobody is alive there */
static ClaimVerdict
watch_beat(const char *key, int64 found)
{
	static int	next = 0;
	uint64		hash = hash_bytes_extended((const unsigned char *) key, strlen(key), 0);
	TimestampTz now = GetCurrentTimestamp();
	WatchedBeat *w = NULL;

	for (int i = 0; i < lengthof(watched) && w == NULL; i++)
	{
		if (watched[i].since != 0 && watched[i].key == hash)
			w = &watched[i];
	}
	if (w == NULL)
	{
		w = &watched[next++ % lengthof(watched)];
		w->key = hash;
		w->beat = found;
		w->since = now;
		return CLAIM_WAIT;
	}
	if (w->beat != found)
	{
		w->beat = found;
		w->since = now;
		return CLAIM_FOREIGN;
	}
	return now < TimestampTzPlusMilliseconds(w->since, BEAT_SILENCE_MS) ?
		CLAIM_WAIT : CLAIM_OURS_AGAIN;
}

/* all tables: whose they are is to be found out anew */
static void
look_at_all_claims(void)
{
	dlist_iter	it;

	place_taken = false;
	dlist_foreach(it, &sync_tables)
		dlist_container(SyncTable, node, it.cur)->target_ready = false;
}

/* one more beat: here first, as whoever is copied from us later knows of fewer */
static bool
write_beat(const char *incarnation_there, TargetResult *res)
{
	Oid			types[4] = {INT8OID, INT8OID, TEXTOID, TEXTOID};
	Datum		values[4];
	MemoryContext oldcxt = CurrentMemoryContext;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	values[0] = Int64GetDatum(beat_acked);
	values[1] = Int64GetDatum(our_beat + 1);
	values[2] = CStringGetTextDatum(our_incarnation);
	values[3] = CStringGetTextDatum(incarnation_there);
	SPI_execute_with_args("UPDATE crate_sync.worker_state SET beat = $2, beat_acked = $1, "
						  "incarnation = $3, incarnation_acked = nullif($4, '')",
						  4, types, values, NULL, false, 0);
	SPI_finish();
	PopActiveSnapshot();
	ForceSyncCommit();
	CommitTransactionCommand();
	MemoryContextSwitchTo(oldcxt);
	our_beat++;

	cs_point("before beat");
	if (!write_claim(beat_key(our_token, our_place), our_incarnation, beat_lane(), beat_epoch, res))
		return false;
	beat_acked = our_beat;
	return true;
}

/*
 * Is it the beat of a former life of this very directory?  A copy that starts
 * within a beat of being made cannot know; the original hears of it with its next.
 */
static bool
is_our_beat(const Claim *beat)
{
	const char *there = beat->cell[C_PLACE];

	if (strtoll(beat->cell[C_BEAT], NULL, 10) > our_beat)
		return false;
	/* earlier versions had no incarnations */
	if (known_incarnation[0][0] == '\0' && known_incarnation[1][0] == '\0' && place_is_ours(there))
		return true;
	return strcmp(there, our_incarnation) == 0 || strcmp(there, known_incarnation[0]) == 0 ||
		strcmp(there, known_incarnation[1]) == 0;
}

/*
 * Nobody is alive where that beat came from: are we the ones to go on?  One
 * that was taken over from misses BEAT_TAKEOVER beats.
 */
static ClaimVerdict
judge_silence(const Claim *beat, int64 timeline)
{
	int64		found = beat->found ? strtoll(beat->cell[C_BEAT], NULL, 10) : 0;

	if (our_timeline > timeline || (our_timeline == timeline && found <= our_beat))
		return CLAIM_OURS_AGAIN;
	return CLAIM_FOREIGN;
}

/*
 * Before the first row of a worker's life is sent, its beat has to be there: of
 * two who lie in the same place and start at one time, one finds the fence
 * raised, or the other's name.  OURS_AGAIN: a twin was at work here.
 */
static ClaimVerdict
take_place(const Claim *claim, TargetResult *res)
{
	ClaimVerdict verdict = CLAIM_OURS;
	char	   *key = beat_key(our_token, our_place);
	char	   *former = beat_key(our_token, our_former_place);
	bool		is_former = false;
	Claim		beat;
	dlist_iter	it;

	if (place_taken)
		return CLAIM_OURS;
	if (!raise_claim_fence(beat_lane(), &beat_epoch, res) || !fetch_claim(key, &beat, res))
		return CLAIM_TROUBLE;
	if (!beat.found)
	{
		if (!fetch_claim(former, &beat, res))
			return CLAIM_TROUBLE;
		is_former = beat.found;
	}
	if (beat.found ? strtoll(beat.cell[C_BEAT], NULL, 10) < beat_acked : claim->found && beat_acked > 0)
		target_was_restored(beat.found ? strtoll(beat.cell[C_BEAT], NULL, 10) : 0);
	else if (beat.found && !is_our_beat(&beat))
	{
		int64		found = strtoll(beat.cell[C_BEAT], NULL, 10);

		verdict = watch_beat(key, found);
		if (verdict == CLAIM_OURS_AGAIN)
			verdict = judge_silence(&beat, strtoll(beat.cell[C_TIMELINE], NULL, 10));
		if (verdict != CLAIM_OURS_AGAIN && adopting == 0)
			return verdict;
		verdict = CLAIM_OURS_AGAIN;
		our_beat = Max(our_beat, found + BEAT_TAKEOVER);
		/* it wrote all of them, and once our beat is there nothing tells that */
		dlist_foreach(it, &sync_tables)
		{
			SyncTable  *st = dlist_container(SyncTable, node, it.cur);

			st->claimed_again |= st->claimed;
		}
		load_all_again("a copy of this database was at work in its place");
		state_ack(true);
	}
	if (!write_beat(beat.found ? beat.cell[C_PLACE] : "", res))
		return CLAIM_TROUBLE;
	place_taken = true;
	if (is_former)
	{
		TargetResult deleted;

		memset(&deleted, 0, sizeof(deleted));
		delete_claim(former, beat_lane(), beat_epoch, &deleted);
	}
	return verdict;
}

/*
 * The claim is by this very database as far as names go: is it we, or a copy
 * of us?
 */
static ClaimVerdict
judge_own_name(const Claim *claim, TargetResult *res)
{
	Claim		beat;
	ClaimVerdict verdict;

	if (place_is_ours(claim->cell[C_PLACE]))
		return take_place(claim, res);

	if (!fetch_claim(beat_key(our_token, claim->cell[C_PLACE]), &beat, res))
		return CLAIM_TROUBLE;
	last_beat_found = beat.found ? strtoll(beat.cell[C_BEAT], NULL, 10) : 0;
	verdict = watch_beat(beat_key(our_token, claim->cell[C_PLACE]), last_beat_found);
	return verdict == CLAIM_OURS_AGAIN ?
		judge_silence(&beat, strtoll(claim->cell[C_TIMELINE], NULL, 10)) : verdict;
}

/* another database of this server, its name palloc'd; or NULL */
static char *
sibling_name(const Claim *claim)
{
	MemoryContext oldcxt = CurrentMemoryContext;
	char	   *name;

	if (strcmp(claim->cell[C_SYSTEM], our_system) != 0 ||
		strcmp(claim->cell[C_DATABASE], our_database) == 0)
		return NULL;
	StartTransactionCommand();
	name = get_database_name((Oid) strtoul(claim->cell[C_DATABASE], NULL, 10));
	if (name != NULL)
		name = MemoryContextStrdup(oldcxt, name);
	CommitTransactionCommand();
	MemoryContextSwitchTo(oldcxt);
	return name;
}

/*
 * Whose the table is, and what to do about it: two databases may have given
 * one name to two tables, and then adopt() would do harm.
 */
static void
describe_other(SyncTable *st, const Claim *claim, char **who, char **hint)
{
	MemoryContext oldcxt = CurrentMemoryContext;
	bool		copy = st->claimed || st->from_dump || strcmp(claim->cell[C_TOKEN], our_token) == 0;
	char	   *sibling = sibling_name(claim);
	char	   *source = quote_literal_cstr(quote_qualified_identifier(st->def->schemaname, st->def->relname));
	char	   *own;
	char	   *other_name;

	StartTransactionCommand();
	own = get_database_name(MyDatabaseId);
	own = MemoryContextStrdup(oldcxt, own ? own : "other");
	CommitTransactionCommand();
	MemoryContextSwitchTo(oldcxt);
	/* a name that every target takes */
	for (char *p = own; *p != '\0'; p++)
	{
		if (!(*p >= 'a' && *p <= 'z') && !(*p >= '0' && *p <= '9'))
			*p = '_';
	}

	*who = sibling ? psprintf("database \"%s\" of this server", sibling) :
		psprintf("database %s of PostgreSQL system %s, timeline %s", claim->cell[C_DATABASE],
				 claim->cell[C_SYSTEM], claim->cell[C_TIMELINE]);
	*who = psprintf("%s: %s", *who, copy ? "this one looks like a copy" : "two tables have that name there");
	other_name = psprintf("SELECT crate_sync.remove_table(%s); SELECT crate_sync.add_table(%s, target => %s); gives it a table of its own there",
						  source, source,
						  quote_literal_cstr(quote_qualified_identifier(st->spec.target_schema,
																		psprintf("%s_%s", st->spec.target_table, own))));
	if (copy)
		*hint = psprintf("If this database is to take over, stop the other one for good, then SELECT crate_sync.adopt(); here. Else %s.", other_name);
	else if (sibling)
		*hint = psprintf("%s (with the other arguments it was added with).", other_name);
	else
		*hint = psprintf("%s (with the other arguments it was added with). If that database is gone for good, SELECT crate_sync.adopt(); takes over what it wrote.", other_name);
}

/*
 * The claim is by a database of this server's name that is not in this server:
 * dropped, or one of a copy of the server.  Its beat tells.
 */
static ClaimVerdict
judge_missing_sibling(const Claim *claim, TargetResult *res)
{
	Claim		beat;
	char	   *key = beat_key(claim->cell[C_TOKEN], claim->cell[C_PLACE]);

	if (!fetch_claim(key, &beat, res))
		return CLAIM_TROUBLE;
	return watch_beat(key, beat.found ? strtoll(beat.cell[C_BEAT], NULL, 10) : 0);
}

ClaimVerdict
claim_table(SyncTable *st, char **who, char **hint, TargetResult *res)
{
	char	   *key = table_key(st->spec.target_schema, st->spec.target_table);
	Claim		claim;
	ClaimVerdict verdict;

	memset(res, 0, sizeof(TargetResult));
	if (!ensure_claim_table(res) || !fetch_claim(key, &claim, res))
		return CLAIM_TROUBLE;

	if (!claim.found)
		verdict = st->claimed ? CLAIM_OURS_AGAIN : CLAIM_OURS;
	else if (strcmp(claim.cell[C_SYSTEM], our_system) == 0 &&
			 strcmp(claim.cell[C_DATABASE], our_database) == 0 &&
			 (strcmp(claim.cell[C_TOKEN], our_token) == 0 || !st->claimed))
		verdict = strcmp(claim.cell[C_TOKEN], our_token) == 0 ?
			judge_own_name(&claim, res) : CLAIM_OURS_AGAIN; /* a former CREATE EXTENSION */
	else if (strcmp(claim.cell[C_SYSTEM], our_system) == 0 &&
			 strcmp(claim.cell[C_DATABASE], our_database) != 0 && sibling_name(&claim) == NULL)
		verdict = judge_missing_sibling(&claim, res);
	else
		verdict = CLAIM_FOREIGN;

	if ((verdict == CLAIM_FOREIGN || verdict == CLAIM_WAIT) && adopting != 0)
		verdict = CLAIM_OURS_AGAIN;
	if (verdict == CLAIM_OURS || verdict == CLAIM_OURS_AGAIN)
	{
		ClaimVerdict place;

		if (!place_taken && claim.found && !place_is_ours(claim.cell[C_PLACE]))
		{
			if (strcmp(claim.cell[C_TOKEN], our_token) == 0)
				our_beat = Max(our_beat, last_beat_found + BEAT_TAKEOVER);
			beat_acked = 0;		/* none at this place yet */
		}
		place = take_place(&claim, res);
		if (place != CLAIM_OURS)
			verdict = place;
	}
	if (verdict == CLAIM_FOREIGN)
	{
		describe_other(st, &claim, who, hint);
		return verdict;
	}
	if (verdict != CLAIM_OURS && verdict != CLAIM_OURS_AGAIN)
		return verdict;

	if (!claim.found || strcmp(claim.cell[C_TOKEN], our_token) != 0 ||
		strcmp(claim.cell[C_PLACE], our_place) != 0 ||
		strtoll(claim.cell[C_TIMELINE], NULL, 10) != our_timeline)
	{
		/* under the fence: of two who claim at one time, one comes too late */
		Claim		now;
		int64		epoch = 0;

		if (!raise_claim_fence(0, &epoch, res) || !fetch_claim(key, &now, res))
			return CLAIM_TROUBLE;
		if (now.found != claim.found ||
			(now.found && (strcmp(now.cell[C_TOKEN], claim.cell[C_TOKEN]) != 0 ||
						   strcmp(now.cell[C_PLACE], claim.cell[C_PLACE]) != 0)))
			return CLAIM_WAIT;
		if (verdict == CLAIM_OURS_AGAIN && st->resync_done == st->spec.resync_no &&
			!load_is_detached(st))
		{
			/* once the claim is written nothing else tells that this is due */
			load_need(st, "full", "the target table was claimed anew");
			state_ack(true);
		}
		if (!write_claim(key, our_place, 0, epoch, res))
			return CLAIM_TROUBLE;
	}
	if (!st->claimed)
	{
		st->claimed = true;
		st->dirty = true;
	}
	return verdict;
}

bool
claim_is_anothers(SyncTable *st)
{
	TargetResult res;
	Claim		claim;

	memset(&res, 0, sizeof(res));
	return ensure_claim_table(&res) &&
		fetch_claim(table_key(st->spec.target_schema, st->spec.target_table), &claim, &res) &&
		claim.found && (!place_taken || strcmp(claim.cell[C_TOKEN], our_token) != 0 ||
						!place_is_ours(claim.cell[C_PLACE]));
}

bool
claim_is_still_ours(SyncTable *st)
{
	TargetResult res;
	Claim		claim;
	Claim		beat;

	memset(&res, 0, sizeof(res));
	if (!fetch_claim(table_key(st->spec.target_schema, st->spec.target_table), &claim, &res) ||
		!claim.found || strcmp(claim.cell[C_TOKEN], our_token) != 0 ||
		!place_is_ours(claim.cell[C_PLACE]) ||
		!fetch_claim(beat_key(our_token, our_place), &beat, &res))
		return false;
	/* the target was emptied, and with it our beat: it has to be there before anything is sent */
	if (!beat.found)
		place_taken = false;
	/* a twin has the same claim */
	return beat.found && strcmp(beat.cell[C_PLACE], our_incarnation) == 0;
}

/* true: there is one, and it is ours */
static bool
look_at_claim(const char *key, bool *foreign, TargetResult *res)
{
	Claim		claim;

	memset(res, 0, sizeof(TargetResult));
	*foreign = false;
	if (!ensure_claim_table(res) || !fetch_claim(key, &claim, res) || !claim.found)
		return false;
	*foreign = strcmp(claim.cell[C_SYSTEM], our_system) != 0 ||
		strcmp(claim.cell[C_DATABASE], our_database) != 0 ||
		!place_is_ours(claim.cell[C_PLACE]);
	return !*foreign;
}

void
claim_look(const char *schema, const char *name, bool *foreign, TargetResult *res)
{
	(void) look_at_claim(table_key(schema, name), foreign, res);
}

void
claim_release(const char *schema, const char *name, TargetResult *res)
{
	char	   *key = table_key(schema, name);
	bool		foreign;
	int64		epoch = 0;

	/* under the fence: who takes it over after we looked keeps it */
	if (look_at_claim(key, &foreign, res) && raise_claim_fence(0, &epoch, res) &&
		look_at_claim(key, &foreign, res))
		delete_claim(key, 0, epoch, res);
}

void
claim_leave(TargetResult *res)
{
	int64		epoch = 0;

	memset(res, 0, sizeof(TargetResult));
	beat_epoch = 0;
	place_taken = false;
	if (!ensure_claim_table(res) || !raise_claim_fence(beat_lane(), &epoch, res))
		return;
	delete_claim(beat_key(our_token, our_place), beat_lane(), epoch, res);
	if (res->outcome == TARGET_OK)
		the_target->ops->drop_fence(the_target, &claim_target, beat_lane(), res);
	if (res->outcome == TARGET_OK)
		beat_acked = 0;			/* none there */
}

bool
claim_heartbeat(void)
{
	TargetResult res;
	TimestampTz now = GetCurrentTimestamp();
	bool		any = false;
	Claim		last;
	dlist_iter	it;

	if (now < next_beat)
		return false;
	dlist_foreach(it, &sync_tables)
	{
		SyncTable  *st = dlist_container(SyncTable, node, it.cur);

		any |= st->claimed && st->target_ready;
	}
	if (!any || !place_taken)
		return false;

	/* nobody else writes this one: if it is older, so is all that is there */
	memset(&res, 0, sizeof(res));
	if (!ensure_claim_table(&res) || !fetch_claim(beat_key(our_token, our_place), &last, &res))
	{
		next_beat = TimestampTzPlusMilliseconds(now, 1000);
		return false;
	}
	if (last.found && strtoll(last.cell[C_BEAT], NULL, 10) < beat_acked)
		target_was_restored(strtoll(last.cell[C_BEAT], NULL, 10));
	else if (last.found && (strcmp(last.cell[C_PLACE], our_incarnation) != 0 ||
							strtoll(last.cell[C_BEAT], NULL, 10) > our_beat))
	{
		/* but for one who lies in the same place, or a machine that was copied while it ran */
		look_at_all_claims();
		return false;
	}

	look_at_a_claim();

	memset(&res, 0, sizeof(res));
	if ((beat_epoch == 0 && !raise_claim_fence(beat_lane(), &beat_epoch, &res)) ||
		!write_beat(our_incarnation, &res))
		beat_epoch = 0;
	if (res.outcome == TARGET_BUSY && strcmp(res.code, "fence") != 0)
		look_at_all_claims();	/* a copy of us is alive too, or the target was restored: who of us may write? */
	else if (res.outcome == TARGET_REFUSED_TABLE)
	{
		claim_forget();
		look_at_all_claims();
	}
	/* a beat that is lost is made good by the next */
	next_beat = TimestampTzPlusMilliseconds(now, res.outcome == TARGET_OK ? BEAT_INTERVAL_MS : 1000);
	return res.outcome == TARGET_OK;
}
