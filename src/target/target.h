/*-------------------------------------------------------------------------
 *
 * target.h
 *		The one interface to where rows go.
 *
 * Two implementations: CrateDB over HTTP (crate/crate.c) and an SQLite file
 * (sqlite.c).  Nothing above this interface knows which it talks to.
 * All of it runs in one process, without threads; nothing here opens a
 * transaction, and no ereport(ERROR) leaves a library's callback.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_TARGET_H
#define CRATE_SYNC_TARGET_H

#include "base/base.h"
#include "target/rowset.h"

/* what a cell of this column is, for a target without JSON of its own */
typedef enum CellKind
{
	CELL_INT,					/* a JSON integer */
	CELL_FLOAT,					/* a JSON number, or "NaN", "Infinity" */
	CELL_BOOL,
	CELL_TEXT,					/* a JSON string */
	CELL_TIMESTAMP,				/* a JSON integer, ms since 1970 UTC */
	CELL_NUMERIC,				/* a JSON string holding a number */
	CELL_JSON,					/* any JSON value */
	CELL_ARRAY					/* a JSON array, nested or not */
} CellKind;

typedef struct TargetColumn
{
	char	   *name;
	char	   *type;			/* CrateDB's: BIGINT, ARRAY(TEXT), NUMERIC(8, 2) */
	char	   *storage;		/* what follows the type in DDL, or NULL */
	CellKind	kind;
	bool		key;
	int			nmembers;		/* of an object, or of those in an array, that is strict */
	struct TargetColumn *members;
} TargetColumn;

typedef struct TargetTable
{
	char	   *schema;
	char	   *name;
	char	   *qualified;		/* "schema"."name", quoted */
	int			ncols;
	TargetColumn *cols;
	int			nkeys;
	int		   *keys;			/* key columns' places in cols, in key order */
	char	   *ddl_clustered;	/* CLUSTERED ... of CREATE TABLE, or NULL */
	char	   *ddl_with;		/* inside of WITH (...), or NULL */
	char	   *ddl_partitioned;	/* PARTITIONED BY ..., or NULL */
	char		token[33];		/* names the writer: goes into markers */
} TargetTable;

typedef enum TargetOutcome
{
	TARGET_OK,					/* carried out: see nwritten */
	TARGET_REFUSED_ROWS,		/* refused for what is in the rows; if there is
								 * more than one row, halves may pass */
	TARGET_FAILED,				/* the target failed over it: may be for what is
								 * in the rows, if neighbours pass */
	TARGET_REFUSED_TABLE,		/* this table cannot be written now, whatever
								 * the rows: missing, blocked, no right */
	TARGET_REFUSED_ALL,			/* nothing can be done at this target now: wrong
								 * password, not a CrateDB */
	TARGET_TOO_BIG,				/* the request is too large: halve it */
	TARGET_BUSY,				/* not carried out in full; later (429, 503, breaker) */
	TARGET_UNREACHABLE,			/* not carried out: never got there */
	TARGET_UNKNOWN				/* may or may not be carried out, now or later:
								 * fence before anything newer is sent */
} TargetOutcome;

typedef enum TargetRequestKind
{
	TARGET_UPSERT,				/* rows: all columns */
	TARGET_DELETE				/* rows: key columns only, in key order */
} TargetRequestKind;

/*
 * A write under way.  The caller owns it, keeps it and what it points to
 * until done is set, and frees result fields with target_request_reset().
 *
 * TARGET_UPSERT writes rows lo <= i < hi, those not dead, guarded by the
 * fence: nothing is written if the epoch of (table, lane) is not ours.
 * nwritten is the number the target says it wrote; less than sent means that
 * rows were dropped or that the fence was raised.  With explain (one row
 * only) a refusal comes as TARGET_REFUSED_ROWS with the target's words.
 *
 * TARGET_DELETE deletes by key, guarded by the fence too: TARGET_UNKNOWN with
 * the code "fence" if it was raised.  A late execution is harmless, but for a
 * table that was made anew meanwhile: see delete_life.  nwritten counts keys that
 * are gone for sure, those that were not there included.  Less than sent: repeat.
 */
typedef struct TargetRequest
{
	/* input */
	TargetRequestKind kind;
	const TargetTable *table;
	int			lane;
	int64		epoch;
	const RowSet *rows;
	int			lo;
	int			hi;
	bool		explain;
	int			beside;			/* how many more than cs_connections may be
								 * under way with it */
	void	   *arg;			/* the caller's */

	/* output */
	bool		done;
	TargetOutcome outcome;
	bool		over;			/* whatever has not been carried out never will
								 * be; else fence before anything newer is sent */
	int64		nwritten;
	char		code[16];		/* the target's error code: "4000", "http 502" */
	char	   *message;		/* malloc'd, bounded, one line, valid in the
								 * database's encoding; NULL if none */
	double		elapsed;		/* ms */
	uint64		bytes_sent;
	int			nrequests;		/* round trips it took */

	void	   *impl;			/* the implementation's */
} TargetRequest;

/* the answer to a statement; lives in the caller's current memory context */
typedef struct TargetResult
{
	TargetOutcome outcome;
	char		code[16];
	char	   *message;
	int			ncols;
	char	  **colnames;
	int			nrows;
	char	 ***cells;			/* [row][col]: JSON text of the cell */
	int64		rowcount;
	double		server_time;	/* ms the target says it took, -1 if unknown */
} TargetResult;

typedef struct TargetInfo
{
	char		product[32];	/* CrateDB, SQLite */
	char		version[32];	/* 6.4.3 */
	int			version_num;	/* 60403 */
} TargetInfo;

typedef struct Target Target;

typedef struct TargetOps
{
	const char *name;			/* crate, sqlite */

	/*
	 * Is this value of crate_sync.target one of its own, and can it work?  If
	 * it is one and cannot, *errmsg (palloc'd) says why.  Raises nothing.
	 */
	bool		(*takes) (const char *conf, char **errmsg);

	/*
	 * Opens no connection yet.  conf is the value of crate_sync.target,
	 * already validated.  Reads password file and ssl settings when it
	 * connects, so a reload is heeded by reconnect().
	 */
	Target	   *(*open) (const char *conf);
	void		(*close) (Target *t);
	void		(*reconnect) (Target *t);	/* settings may have changed */

	/*
	 * Asynchronous writes.  submit returns false when no connection is free
	 * (no more than cs_connections under way, but for what the request's
	 * beside allows, which is at most one more than twice as many).  poll waits until a request
	 * is done, MyLatch is set or timeout (ms, -1: none) is over; it resets
	 * nothing: the caller does CHECK_FOR_INTERRUPTS and ResetLatch.  A done
	 * request has its done flag set.
	 */
	bool		(*submit) (Target *t, TargetRequest *req);
	void		(*poll) (Target *t, long timeout, uint32 wait_event);
	void		(*abandon) (Target *t, TargetRequest *req); /* forget it; the
															 * target may still carry it out */

	/*
	 * Has a host that was away come back since this was last asked?  Then what
	 * could not be reached is worth a try at once.  poll ends for that.  NULL: no.
	 */
	bool		(*came_back) (Target *t);

	/*
	 * A delete that is not over may be carried out for so many ms longer, and
	 * no fence keeps it from a table that takes the place of the one it was for.
	 * NULL: nothing is ever carried out late.
	 */
	int			(*delete_life) (Target *t);

	/*
	 * Synchronous calls.  They wait no longer than timeouts allow, heed
	 * interrupts, drive requests under way meanwhile, and report trouble in
	 * the outcome, not by ereport.  args_json is an array in UTF-8, as cells
	 * are, or NULL; sql, names and messages are in the database's encoding.
	 */
	void		(*statement) (Target *t, const char *sql, const char *args_json,
							  TargetResult *res);
	void		(*check) (Target *t, TargetInfo *info, TargetResult *res);

	/*
	 * Makes the table exist as described: creates it, adds columns that are
	 * missing, or says in res what does not fit (TARGET_REFUSED_TABLE with a
	 * message that names column and types), or that a part of the table is
	 * out of reach.  created is set if it was made or was there but never
	 * written by us, altered if columns were added to it, or, without add, are
	 * still to be.
	 */
	void		(*ensure_table) (Target *t, const TargetTable *table, bool add, bool *created,
								 bool *altered, TargetResult *res);

	/*
	 * Which tables these are, by number: ids[i] (palloc'd) is a word that stays
	 * with the table as long as it lives, under whatever name, and another one
	 * that changes with its columns; NULL: not there, or not known.
	 */
	void		(*identify) (Target *t, const TargetTable *const *tables, int n, char **ids,
							 TargetResult *res);

	/*
	 * Can all of the table's rows be reached?  To be asked about one that
	 * keeps us waiting; answers at once.  NULL: they always can.
	 */
	void		(*reachable) (Target *t, const TargetTable *table, TargetResult *res);
	void		(*drop_table) (Target *t, const char *schema, const char *name,
							   TargetResult *res);
	/* "as" takes the place of "table"; grants stay */
	void		(*swap_table) (Target *t, const TargetTable *as, const TargetTable *table,
							   TargetResult *res);

	/*
	 * Raises the fence of (table, lane) to a new epoch and waits until no
	 * request that passed an older one can still be running.  Epochs come from
	 * the target's clock, in ms, so that those of a fence that was dropped do not
	 * come again.
	 */
	void		(*raise_fence) (Target *t, const TargetTable *table, int lane,
								int64 *epoch, TargetResult *res);
	/* how many lanes, counted from 0, there may ever have been a fence for */
	void		(*count_lanes) (Target *t, const TargetTable *table, int *n, TargetResult *res);
	/* what is left of a table that is no more; lane -1: all */
	void		(*drop_fence) (Target *t, const TargetTable *table, int lane, TargetResult *res);
	/* reads it: is ours still the newest? */
	void		(*read_fence) (Target *t, const TargetTable *table, int lane,
							   int64 *epoch, TargetResult *res);

	/*
	 * Up to limit rows, some columns of them, in the target's own key order,
	 * after the given key (NULL: from the start; else a RowSet of one row of
	 * key columns).  Appends them to out.  refresh: first make all that was
	 * acknowledged visible to searches.
	 */
	void		(*page) (Target *t, const TargetTable *table, const int *cols, int ncols,
						 const RowSet *after, int limit, bool refresh, RowSet *out,
						 TargetResult *res);
	/*
	 * The given columns of the rows with these keys, in no order.  fresh: sees
	 * all acknowledged writes; else those before the last refresh at least,
	 * which costs a fraction.
	 */
	void		(*fetch) (Target *t, const TargetTable *table, const int *cols, int ncols,
						  const RowSet *keys, int lo, int hi, bool fresh, RowSet *out,
						  TargetResult *res);

	/* makes acknowledged writes visible to every query */
	void		(*refresh) (Target *t, const TargetTable *table, TargetResult *res);

	/* DDL of the table, no connection needed; palloc'd */
	char	   *(*ddl) (const TargetTable *table);

	/* how SQL text names a table; palloc'd.  NULL: "schema"."name" */
	char	   *(*sql_name) (const char *schema, const char *name);
} TargetOps;

struct Target
{
	const TargetOps *ops;
};

extern const TargetOps target_crate_ops;
extern const TargetOps target_sqlite_ops;

/* from _PG_init; whoever takes only his own comes first */
extern void target_register(const TargetOps *ops);

/*
 * Which implementation a setting names; NULL and *errmsg (palloc'd) if it
 * is none that can work.  An empty conf is NULL without errmsg.
 */
extern const TargetOps *target_ops_for(const char *conf, char **errmsg);
extern void target_request_reset(TargetRequest *req);

/* to be called by whoever waits for a target, every 200 ms or so; the worker says what is done then */
extern void target_idle(void);
extern void target_set_idle(void (*hook) (void));
extern void target_result_error(TargetResult *res, TargetOutcome outcome,
								const char *code, const char *fmt,...) pg_attribute_printf(4, 5);

#endif							/* CRATE_SYNC_TARGET_H */
