/*-------------------------------------------------------------------------
 *
 * table.h
 *		The worker's own picture of the tables it mirrors, and what the rooms
 *		inside of the worker (reader, lanes, load, state) tell each other.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_SYNC_H
#define CRATE_SYNC_SYNC_H

#include "base/base.h"
#include "access/xact.h"
#include "base/xact.h"
#include "executor/spi.h"
#include "lib/ilist.h"
#include "mirror/mirror.h"
#include "mirror/types.h"
#include "queue/key.h"
#include "queue/queue.h"
#include "target/target.h"
#include "utils/timestamp.h"

typedef struct SyncTable SyncTable;
typedef struct KeySet KeySet;
typedef struct VerifyRun VerifyRun;

/*
 * A pass: rows read together, acknowledged together.  It comes from chunks
 * of the queue, from a piece of a load, or from a page of a sweep.  Each of
 * its rows sits in some batch; when none is left to wait for, what it stands
 * for is done with.
 */
typedef enum PassKind
{
	PASS_QUEUE,
	PASS_LOAD,
	PASS_SWEEP
} PassKind;

typedef struct Pass
{
	dlist_node	node;			/* in SyncTable.passes, oldest first */
	PassKind	kind;
	uint64		no;				/* in the order of their making */
	MemoryContext cxt;			/* holds the pass and all that it points to */
	int			pending;		/* rows in batches */
	bool		fed;			/* all of its rows have been put into batches */
	bool		done;			/* fed, and none pending */
	bool		filling;		/* chunks are still being added to it */
	bool		applied;		/* by the acknowledgement under way */

	List	   *chunks;			/* PASS_QUEUE: of QueueChunk * */
	List	   *walks;			/* links still to be walked up, of walk.c */
	KeySet	   *keys;			/* keys still to be read, or NULL */
	bool		reading;		/* they are asked for: there come no more */
	uint64		read_no;		/* of keys: see lane_begin_read() */

	/* PASS_LOAD: where the next piece begins */
	Oid			load_rel;
	Oid			load_filenode;
	int64		load_pos;
	/* PASS_SWEEP: the last target key looked at */
	char	   *sweep_key;
	bool		last;			/* the load's, or the sweep's, last piece */
	int64		rows;			/* for progress */
	int64		bytes;
} Pass;

/* a lane: one table, one share of its keys, first in first out */
typedef struct BatchSegment
{
	TargetRequestKind kind;
	int			lo;
	int			hi;
	bool		explain;
	uint64		suspected;		/* refused when so many - 1 had arrived; 0: not */
} BatchSegment;

typedef struct BatchShare
{
	Pass	   *pass;
	int			n;
} BatchShare;

typedef struct Batch
{
	dlist_node	node;
	MemoryContext cxt;
	uint64		no;				/* the table's, in the order of their making */
	RowSet	   *upserts;		/* all columns */
	RowSet	   *deletes;		/* key columns */
	struct keymap_hash *keys;	/* made when a second read adds rows */
	uint64		read_no;		/* the read that added rows last */
	Size		bytes;
	int			nshares;
	int			maxshares;
	BatchShare *shares;
	/* once sealed: what is still to be sent, a stack */
	bool		sealed;
	uint64		ready_no;		/* the table's when it began */
	int			suspects;		/* rows refused alone since something arrived */
	int			nsegments;
	int			maxsegments;
	BatchSegment *segments;
	TimestampTz opened;
} Batch;

typedef struct Lane
{
	SyncTable  *table;
	int			no;
	int64		epoch;			/* 0: the fence has to be raised first */
	Batch	   *open;
	dlist_head	sealed;			/* behind current, oldest first */
	int			nsealed;
	Batch	   *current;
	bool		busy;			/* req is under way */
	TargetRequest req;
	TimestampTz sent_at;		/* req */
	int			attempts;		/* failed in a row */
	int			fence_tries;
	TimestampTz retry_at;
	int			delete_tries;
} Lane;

/* a row that was refused, to be written down at the next acknowledgement */
typedef struct ParkedRow
{
	char	   *target_key;		/* key cells, separated by commas */
	char	   *packed;
	int			packed_len;
	const char *action;			/* NULL: it has arrived after all */
	char		code[16];
	char	   *message;
} ParkedRow;

/* load_mode of a table that queues nothing (overflow.c) */
#define LOAD_MODE_DETACHED "detached"

typedef enum LoadPhase
{
	LOAD_NONE,
	LOAD_ROWS,
	LOAD_SWEEP,
	LOAD_VERIFY
} LoadPhase;

/* what a visit to the queue does with a table's chunks */
typedef enum FeedWay
{
	FEED_TAKE,
	FEED_LATER,					/* it has no room, but soon */
	FEED_HOLD					/* out of the others' way */
} FeedWay;

struct SyncTable
{
	dlist_node	node;
	MemoryContext cxt;			/* lives as long as the entry */
	MemoryContext def_cxt;		/* lives as long as the definition */
	MemoryContext spec_cxt;		/* lives as long as the spec */
	Oid			relid;
	MirrorSpec	spec;			/* in spec_cxt */
	MirrorTable *def;			/* NULL: could not be resolved */
	KeyLayout	layout;
	CellEncoder *encoders;		/* a column each */
	bool		key_is_number;	/* one integer column */
	struct ReadPlans *plans;	/* of plans.c; NULL: none yet */
	char	   *shape;
	bool		stale;			/* the relation's definition may have changed */
	bool		gone;			/* the relation was dropped */
	TimestampTz follow_at;		/* when whoever has its name is next looked for */
	Oid		   *watched;		/* in cxt, ascending: what else is part of it, partitions and types */
	int			nwatched;
	bool		has_types;		/* users', or collations */
	bool		calls_functions;	/* in its filter, users' */
	int			mend_attempts;	/* triggers fire, but not as they should: tries in a row */
	TimestampTz mend_at;		/* the next one */
	bool		from_dump;		/* it came into the catalog by one: durable, as due */
	TimestampTz restored_seen;	/* when its triggers were not there yet; 0: not so far */
	int			restored_resync_no;

	/* durable, as in mirror_state */
	bool		state_known;
	int			resync_done;
	char	   *load_mode;		/* in cxt; NULL: no load under way */
	LoadPhase	phase;
	Oid			load_rel;
	Oid			load_filenode;
	int64		load_pos;		/* acknowledged up to here: block << 16 | offset */
	char	   *sweep_key;		/* in cxt; not NULL in LOAD_ROWS: a sweep is to follow */
	int64		load_rows;
	int64		load_total;
	int64		load_bytes;
	TimestampTz load_start;
	char	   *due;			/* in cxt: why a load is owed, until one is finished; or NULL */
	bool		due_again;		/* the one under way may not have seen it all */
	int			verify_done;

	/* a comparison under way; durable is only that it was asked for */
	VerifyRun  *verify;			/* in cxt; NULL: begins, or none */
	bool		verify_changed; /* progress to be written down */
	bool		verify_finished;	/* since the last time it was written down */
	bool		verify_ok;
	int64		n_differences;	/* durable: found by the last one, not mended; -1: not known */
	int64		n_submitted;	/* requests since the worker's start */
	uint64		n_arrived[2];	/* segments, by TargetRequestKind, likewise */

	/* counted since the last time they were written down */
	int64		n_upserted;
	int64		n_deleted;
	int64		n_failed;
	int64		n_requests;
	int64		n_retries;
	int64		n_bytes;
	double		request_time;
	bool		dirty;			/* something to write down */
	bool		urgent;			/* now, whether rows are acknowledged or not */
	TimestampTz last_ack;

	/* pipeline */
	dlist_head	passes;
	int			nlanes;
	int			lanes_used;		/* durable: how many there may have been at the target */
	Lane	   *lanes;
	int			next_lane;		/* the first to be asked for something to send */
	bool		sent;			/* in this turn */
	bool		slow;			/* its rows took long to be read */
	int			batch_rows;		/* shrinks when the target finds it too big */
	Size		held_bytes;		/* in batches */
	int			fence_tries;	/* of lanes_fence_all(), failed in a row */
	List	   *parked;			/* of ParkedRow *, in cxt */
	int			parked_in_a_row;
	uint64		last_batch_no;
	struct failedmap_hash *failed;	/* target keys in crate_sync.failed, or NULL */
	bool		failed_all;		/* there are too many: any key may be in there */
	int			failed_room;	/* so many may be known then, at least */
	bool		unrefreshed;	/* written since the last refresh */

	/* feeding a load */
	Oid			feed_rel;		/* InvalidOid: at the start */
	Oid			feed_filenode;
	int64		feed_pos;
	bool		feed_done;		/* all pieces of the phase are in batches */
	int			feed_blocks;	/* size of the next piece */
	List	   *feed_leaves;	/* of Oid, in def_cxt */
	char	   *feed_sweep_key; /* in cxt */
	bool		sweep_started;
	uint64		sweep_barrier;	/* passes up to this one have to be done first */
	bool		loaded_once;	/* nothing was missed since; durable, as last_load_time */
	bool		load_finished;	/* since the last time it was written down */
	bool		swap_wanted;	/* a rebuilt table is to take the old one's place */
	bool		rebuild_begun;	/* by this worker: the new table was made for it */
	TimestampTz swap_retry_at;

	/* detached: see overflow.c */
	bool		attached_again;
	List	   *writers;		/* of VirtualTransactionId *, to be waited for */

	bool		key_runs_code;	/* users', when keys of the target are looked up */
	bool		rows_run_code;	/* for each row, its filter aside */
	bool		runs_code;		/* for any read, its filter aside */
	TimestampTz read_retry_at;	/* the relation is locked, or slow: later; 0: it is not */
	int			read_limit;		/* keys a query may ask for; 0: no limit */
	int			read_timeouts;	/* in a row, without a row read */
	int			row_timeouts;	/* of one row alone */
	int			rows_timed_out; /* and parked for it, in a row */
	int			sweep_limit;	/* keys in a page of a sweep; 0: no limit */
	FeedWay		way;			/* in the last visit to the queue */
	bool		awaits_room;	/* it had to leave some there */
	TimestampTz full_since;		/* likewise, ever since then; 0: not */

	/* trouble */
	bool		target_ready;	/* the target table was seen to fit */
	uint64		prepared;		/* the last round of prepare_tables() it was in */
	/* seen at the target, and to be answered by a load */
	bool		found_missing;	/* the table was made, or is empty */
	bool		found_altered;	/* not as it was left */
	bool		claimed_again;	/* CLAIM_OURS_AGAIN */
	bool		found_other;	/* another table has taken its place */
	char	   *seen_id;		/* in cxt: of the one that is there, see TargetOps.identify */
	TimestampTz ready_time;		/* since then */
	uint64		ready_no;		/* counts how often */
	TimestampTz watch_at;		/* when slow requests are next looked into */
	int			refresh_tries;	/* failed in a row */
	bool		claimed;		/* durable: the target table was ours once */
	char	   *target_id;		/* durable, in cxt: which one it was, and its name; NULL: not known */
	TimestampTz claim_retry_at;
	bool		in_error;
	bool		error_changed;	/* to be written down */
	int			error_attempts;
	TimestampTz error_retry_at;
	char		error_code[16];
	char	   *error_message;	/* in cxt */
	char	   *error_hint;
	char		logged_error[256];
};

/* ---- main.c ---- */

/* ms after which a table leaves what it has to read for its next turn */
#define READ_TURN_MS 250

extern Target *the_target;
extern dlist_head sync_tables;
extern bool worker_target_ok;
extern Size worker_held_bytes;

/* a table cannot be written: drop what is in memory, hold its chunks, try later */
extern void table_trouble(SyncTable *st, const char *code, const char *message,
						  const char *hint);
/* likewise, but it goes on */
extern void table_warning(SyncTable *st, const char *code, const char *message,
						  const char *hint);
extern void target_trouble(TargetOutcome outcome, const char *code, const char *message);
extern void table_goes_on(SyncTable *st);
extern bool worker_has_room(const SyncTable *st);
extern bool worker_may_feed(SyncTable *st);
extern void live_note_ack(void);
extern void worker_tell_state(const char *state, const char *error, const char *hint);
extern void worker_feed_soon(void);

/* ---- setup.c ---- */
extern bool prepare_table(SyncTable *st);
extern void swap_rebuilt(SyncTable *st);
extern void prepare_look(void);	/* are they all there still? */
extern void give_up_rebuild(SyncTable *st); /* its new table is to go; outside of transactions */
extern void process_removals(void);

/* ---- reader.c ---- */

/* (re)makes the layout, encoders and plans after a change; in a transaction */
extern void reader_setup(SyncTable *st);

/*
 * Reads rows of the pass's keys and puts them, or deletes, into batches.
 * sweep: keys that are there are left alone.  Runs a transaction of its own;
 * an error of the row's own ends in a smaller query, at last in a parked key.
 */
extern void reader_feed_keys(SyncTable *st, Pass *pass);

/* reads a piece of a load; moves feed_rel and feed_pos on */
extern void reader_feed_range(SyncTable *st);

/*
 * For comparing: rows as the lanes would get them, but into a row set.  Each
 * is a transaction of its own; max_rows and max_bytes are passed by no more
 * than a row.
 *
 * reader_collect_range reads the piece behind feed_pos and moves that on,
 * feed_done at the end; what could not be read is cut smaller in the next
 * call, at last it comes as *unread, keys in keys_cxt.  *restarted is set if
 * the leaf is read from its start again.  False: the table is in trouble.
 *
 * reader_collect_keys reads the rows of all keys, or, with rows NULL, looks
 * which are there; what is not there stays open.  also() is called in the
 * same snapshot.  READ_STOPPED: more bytes than allowed, READ_REFUSED: some
 * row cannot be read, READ_LATER: the only one could not this time,
 * READ_TROUBLE: the table is in trouble.
 */
typedef enum ReadOutcome
{
	READ_OK,
	READ_STOPPED,
	READ_REFUSED,
	READ_LATER,
	READ_TROUBLE
} ReadOutcome;

extern bool reader_collect_range(SyncTable *st, RowSet *rows, int max_rows, Size max_bytes,
								 MemoryContext keys_cxt, KeySet **unread, bool *restarted);
extern ReadOutcome reader_collect_keys(SyncTable *st, KeySet *ks, RowSet *rows, Size max_bytes,
									   void (*also) (SyncTable *st, void *arg), void *arg);
/*
 * The target's key cells as source values; false if they are none, or if code
 * of users says so, for a reason: then nobody knows.  In a transaction, between
 * begin and end; what takes too long is an error.
 */
extern void reader_begin_cells(SyncTable *st);
extern void reader_end_cells(void);
extern bool reader_key_from_cells(SyncTable *st, const RowSet *rows, int row, Datum *values,
								  char **reason);
/* for a sweep: a page's keys into the pass, or deletes into lanes; false: not now */
extern bool reader_take_page(SyncTable *st, Pass *pass, const RowSet *page);
extern void reader_add_key_row(SyncTable *st, RowSet *rs, const char *target_key);
extern RowSet *reader_key_rowset(SyncTable *st, const char *target_key);
extern void reader_put_raw_delete(SyncTable *st, Pass *pass, const RowSet *rows, int row);
/* false: the target cannot be told this key, see append_key_cell() */
extern bool reader_key_cells(SyncTable *st, const Datum *values, StringInfo buf);
extern Datum reader_cells_to_jsonb(SyncTable *st, const char *target_key);
extern char *reader_pack_cells(SyncTable *st, const char *target_key, int *len);

/* which of a document's roots are asked for: those that these values of a node's link belong to */
typedef struct RootsAsked
{
	const struct DocNode *node;
	Datum	   *values[INDEX_MAX_KEYS];	/* a column each */
	int			nvalues;
	bool		more;			/* out: there are more than the limit */
	/* of one leaf's blocks alone, moved on to those behind */
	Oid			leaf;			/* InvalidOid: of all */
	Oid			filenode;		/* InvalidOid: of whatever storage it has */
	BlockNumber from;
	BlockNumber blocks;
	BlockNumber nblocks;		/* out: of the leaf */
} RootsAsked;

/* their keys, into the set; false: not now, or the table is in trouble */
extern bool reader_walk(SyncTable *st, RootsAsked *asked, KeySet *ks, int limit);

/* ---- walk.c ---- */

/* what a chunk of a document's links says, into the pass; false: it cannot be read */
struct DocLink;
extern bool walk_take(SyncTable *st, Pass *pass, const struct DocLink *link, const QueueChunk *chunk);

/* some steps up: root keys into pass->keys, until they are enough to be read or there are no more walks */
extern void walk_step(SyncTable *st, Pass *pass);

/* ---- keyset.c ---- */
extern Size worker_unread_bytes;	/* in all sets of keys */

extern void keyset_setup(SyncTable *st);	/* its layout is new */
/* in a memory context of its own below cxt */
extern KeySet *keyset_create(MemoryContext cxt, SyncTable *st);
extern void keyset_free(KeySet *ks);
/* adds a key of source values; the same key twice is one; before any is asked for */
extern void keyset_add(KeySet *ks, const Datum *values);
/* how many are not settled; before any is asked for, one that was added twice counts twice */
extern int	keyset_nopen(const KeySet *ks);
/* asks for the first open keys, at most so many; returns how many */
extern int	keyset_ask(KeySet *ks, int limit);
/* the first key from i on that is open, and of those asked for; -1: none */
extern int	keyset_next_open(KeySet *ks, int i);
extern int	keyset_next_asked(const KeySet *ks, int i);
/* its values, and its cells; both until the next call */
extern const Datum *keyset_values(KeySet *ks, int i);
extern const char *keyset_cells(KeySet *ks, int i, int *len);
extern void keyset_settle(KeySet *ks, int i);
/* the k-th column of those asked for, palloc'd */
extern Datum keyset_asked_array(KeySet *ks, int k);
/* their bounds, if they are integers and at least every second between is asked for */
extern bool keyset_asked_range(KeySet *ks, Datum *bounds);
/* which key is it?  By its integer: an open one that was asked for, or -1; by cells: any, or -1 */
extern bool keyset_of_numbers(const KeySet *ks);
extern int	keyset_find_number(KeySet *ks, Datum value);
extern int	keyset_find(const KeySet *ks, uint64 hash, const char *cells, int len);

/* ---- feed.c ---- */
extern bool feed_queue(TimestampTz *next);
extern bool feed_awaited(void);	/* it should be looked at again */
extern bool feed_rows(SyncTable *st);
extern void feed_hold(const QueueChunk *chunk); /* to the hold table, at the next state_ack */
/* in state_ack, for chunks of passes that are done; and of those that are given up */
extern void feed_ack_begin(const QueueChunk *chunk);
extern void feed_ack(const QueueChunk *chunk);
extern void feed_acked(const QueueChunk *chunk);
extern void feed_give_up(const QueueChunk *chunk, bool hold);
extern List *feed_held(void);
extern void feed_held_reset(void);

/* ---- lanes.c ---- */
extern void lanes_setup(SyncTable *st);
extern void lanes_drop(SyncTable *st);	/* forgets what is in memory */
extern Lane *lane_for_key(SyncTable *st, uint64 hash);
/* where a row goes; then fill cells, then lane_row_done */
extern Batch *lane_open_batch(Lane *lane);
/* rows added from here on have distinct keys, as have those of the same set of numbers */
extern void lane_begin_read(Pass *pass);
extern void lane_row_done(Lane *lane, Batch *batch, Pass *pass, bool is_delete,
						  const char *key, int keylen, uint64 hash, Size rowbytes);
extern void lanes_begin_turn(void);
extern bool lanes_dispatch(SyncTable *st, bool input_idle);
extern bool lanes_reap(SyncTable *st);
extern void lanes_watch(SyncTable *st); /* what is under way for long */
extern bool lanes_idle(const SyncTable *st);
extern bool lanes_fence(SyncTable *st);	/* nothing older than now can still arrive */
extern bool lanes_fence_all(SyncTable *st, const TargetTable *table, TimestampTz *retry_at);
extern void lanes_expect_late_deletes(void);
extern TimestampTz lanes_late_deletes(void);
extern bool lanes_retrying(const SyncTable *st);
extern TimestampTz lanes_next_retry(const SyncTable *st);
/* perhaps it is in failed_rows; false: it is not */
extern bool failed_key_known(const SyncTable *st, const char *target_key, int len);
extern void failed_key_note(SyncTable *st, const char *target_key, int len);
extern int	failed_key_limit(void); /* of more than that, not each is known */
extern void failed_none(SyncTable *st);
extern void unpark_row(SyncTable *st, const char *target_key, int len);
/* of which the row could not be read just now */
extern void park_row(SyncTable *st, const char *target_key, int keylen, const char *packed, int packed_len,
					 const char *action, const char *code, const char *message);

/* ---- load.c ---- */
extern void load_begin(SyncTable *st, const char *mode);
extern void load_need(SyncTable *st, const char *mode, const char *why);
extern void load_look_at_all(SyncTable *st, const char *why);	/* which rows have changed is not known */
extern void load_enter_phase(SyncTable *st, LoadPhase phase);
extern bool load_step(SyncTable *st);	/* feeds one piece; false if nothing to do */
extern void load_pass_done(SyncTable *st, Pass *pass);
extern void load_restart(SyncTable *st);	/* go on from the durable position */
extern void load_want_sweep(SyncTable *st);	/* rows may have to go from the target */
extern void load_all_again(const char *why);
extern void load_cancel(SyncTable *st);
extern void load_detach(SyncTable *st);
extern bool load_is_rebuild(const SyncTable *st);
extern bool load_is_detached(const SyncTable *st);
extern void load_swapped(SyncTable *st);

/* ---- reload.c ---- */
extern void state_init(void);
extern void state_reload(void); /* tables from the catalog */
extern bool state_reload_saw(FullTransactionId xid);
extern void state_hold_work(SyncTable *st);	/* forget batches, move chunks to the hold table */
extern void state_forget_work(SyncTable *st);	/* and its chunks with it */
extern void state_drop_all_work(void);	/* forget everything; it is read again */
extern Oid	state_catalog_relid;
/* one transaction: what was acknowledged, and what has changed; sure: no crash undoes it */
extern void state_ack(bool sure);
extern bool state_ack_due(void);
extern void state_changed(void);	/* the catalog may have */
extern bool state_catalog_stale(void);
extern void state_look(void);	/* all that was committed before is known from then on */
extern SyncTable *state_find(Oid relid);
extern int64 state_count(void);
extern void state_drop_chunk(const QueueChunk *chunk);	/* at the next state_ack */
extern uint64 pass_last_no(void);
extern Pass *pass_create(SyncTable *st, PassKind kind);
extern void pass_settle(SyncTable *st, Pass *pass, int n);

#endif							/* CRATE_SYNC_SYNC_H */
