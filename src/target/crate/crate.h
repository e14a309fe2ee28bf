/*-------------------------------------------------------------------------
 *
 * crate.h
 *		What the files of the CrateDB target share.
 *
 * statement.c writes requests, answer.c takes answers apart; writes.c takes a
 * write from step to step, session.c sends and waits; fence.c, rows.c and
 * tables.c are what is asked for; crate.c is the Target.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_CRATE_H
#define CRATE_SYNC_CRATE_H

#include "base/base.h"
#include "common/jsonapi.h"
#include "nodes/pg_list.h"
#include "target/crate/http.h"
#include "target/target.h"

#define FENCE_TABLE			CS_SCHEMA ".fence"
#define MARKER				"/* crate_sync "
#define POLL_MARKER			"/* fence poll */ "

/* a piece of an answer: JSON text, not terminated; start NULL: not there */
typedef struct Slice
{
	const char *start;
	int			len;
} Slice;

typedef struct Answer
{
	Slice		cols;
	Slice		rows;
	Slice		results;
	bool		has_rowcount;
	int64		rowcount;
	double		duration;
	bool		is_error;
	int			error_code;
	Slice		error_message;
} Answer;

/* what a round trip came to; message is palloc'd or NULL */
typedef struct Verdict
{
	TargetOutcome outcome;
	bool		over;			/* nothing of it can still be carried out */
	char		code[16];
	char	   *message;
} Verdict;

#define MAX_CONNECTIONS		32
#define MAX_QUERY_ANSWER	(64 * 1024 * 1024)

typedef struct Slot Slot;

typedef struct CrateTarget
{
	Target		base;
	MemoryContext cxt;
	MemoryContext work;			/* of one step of a write */
	MemoryContext sync_work;	/* of one synchronous call */
	HttpPool   *pool;
	Slot	   *slots[2 * MAX_CONNECTIONS + 1];
	int			nslots;
	int			nbusy;
	int			nfinished;		/* requests done since poll last returned */
	TimestampTz hosts_learnt;	/* when they were last asked for; 0: not */
	bool		came_back;		/* a host did, since crate_came_back() was asked */
	List	   *columns;		/* of ColumnCount *, in cxt */
	int			longest_life;	/* of a delete, that this worker has sent */
	HttpConn   *sync;			/* synchronous calls have a connection of their own */
	bool		sync_done;
	bool		latch_eaten;	/* reset by us: to be set again */
} CrateTarget;

/* ---- answer.c ---- */
typedef struct JsonIter
{
	JsonLexContext *lex;
	JsonTokenType end;
	bool		failed;
	bool		over;
} JsonIter;

extern void json_iter_start(JsonIter *it, Slice value);
extern bool json_iter_next(JsonIter *it, Slice *key, Slice *value);
extern bool slice_int(Slice s, int64 *result);
extern char *slice_text(Slice s, int *len);
extern void answer_judge(HttpConn *conn, Answer *answer, Verdict *v);
extern void append_answer_cell(StringInfo buf, const TargetColumn *col, Slice value);
extern int answer_nrows(const Answer *answer);
extern bool answer_int(const Answer *answer, int64 *value);
extern int count_deleted(const Answer *answer, int sent);

/* ---- statement.c ---- */
#define raw(buf, literal) appendBinaryStringInfo(buf, literal, sizeof(literal) - 1)

typedef struct ColumnList
{
	const int  *cols;
	int			ncols;
} ColumnList;

extern void begin_statement(StringInfo buf);
extern void sql_text(StringInfo buf, const char *text);
extern void sql_column(StringInfo buf, const TargetTable *table, int col);
extern bool type_is(const char *type, const char *word);
extern const char *sent_type(const TargetColumn *col);
extern void append_marker_id(StringInfo buf, const TargetTable *table, int lane);
extern void append_marker(StringInfo buf, const TargetRequest *req);
extern void append_fence_id(StringInfo buf, const TargetTable *table, int lane);
extern void append_fence_prefix(StringInfo buf, const TargetTable *table, bool end);
extern Size cells_size(const RowSet *rows, int lo, int hi);
extern void build_upsert(StringInfo buf, const TargetRequest *req);
extern int key_place(const TargetTable *table, const RowSet *rows, int k);
extern int lookup_chunk(const TargetTable *table, const RowSet *rows, int lo, int hi);
extern void build_lookup(StringInfo buf, const TargetTable *table, const RowSet *rows, int lo,
						 int hi, const TargetRequest *req, void (*what) (StringInfo buf, const TargetTable *table,
						 void *arg), void *arg);
extern void what_version(StringInfo buf, const TargetTable *table, void *arg);
extern void what_columns(StringInfo buf, const TargetTable *table, void *arg);
extern void build_search(StringInfo buf, const TargetTable *table, const RowSet *rows, int lo,
						 int hi, ColumnList *list);
extern void build_refresh(StringInfo buf, const TargetTable *table);
extern void build_count_columns(StringInfo buf, const TargetTable *table);
extern void append_delete_of_key(StringInfo buf, const TargetTable *table);
extern void build_probe(StringInfo buf, const TargetRequest *req);
extern void build_read_fence(StringInfo buf, const TargetTable *table, int lane);

/* ---- tables.c ---- */
extern char *crate_ddl(const TargetTable *table);
extern void crate_ensure_table(Target *target, const TargetTable *table, bool add, bool *created,
							   bool *altered, TargetResult *res);
extern void crate_identify(Target *target, const TargetTable *const *tables, int n, char **ids,
						   TargetResult *res);
extern void crate_drop_table(Target *target, const char *schema, const char *name,
							 TargetResult *res);
extern void crate_swap_table(Target *target, const TargetTable *as, const TargetTable *table,
							 TargetResult *res);

/* ---- writes.c ---- */
extern void slot_advance(Slot *slot);
extern bool crate_submit(Target *target, TargetRequest *req);
extern int	crate_delete_life(Target *target);
extern void crate_abandon(Target *target, TargetRequest *req);

/* ---- session.c ---- */
extern void crate_poll(Target *target, long timeout, uint32 wait_event);
extern bool crate_came_back(Target *target);
extern bool sync_send_patiently(CrateTarget *t, long patience, Answer *answer, TargetResult *res);
extern void sync_send(CrateTarget *t, Answer *answer, TargetResult *res);
extern bool sync_wait(CrateTarget *t, bool for_answer, long ms);
extern MemoryContext sync_enter(CrateTarget *t);
extern void sync_leave(CrateTarget *t, MemoryContext caller, TargetResult *res);
extern void sync_query(CrateTarget *t, const char *sql, const char *args_json, TargetResult *res);
extern void sync_rows(CrateTarget *t, const char *sql, const char *args_json, int ncols,
					  TargetResult *res);
extern void crate_statement(Target *target, const char *sql, const char *args_json,
							TargetResult *res);
extern void sync_learn_hosts(CrateTarget *t);
extern char *sync_cell_text(const char *cell);
extern char *table_args(const char *schema, const char *name);

/* ---- fence.c ---- */
extern void crate_raise_fence(Target *target, const TargetTable *table, int lane, int64 *epoch,
							  TargetResult *res);
extern void crate_count_lanes(Target *target, const TargetTable *table, int *n, TargetResult *res);
extern void crate_drop_fence(Target *target, const TargetTable *table, int lane,
							 TargetResult *res);
extern void sync_read_fence(CrateTarget *t, const TargetTable *table, int lane, int64 *epoch,
							TargetResult *res);
extern void crate_read_fence(Target *target, const TargetTable *table, int lane, int64 *epoch,
							 TargetResult *res);

/* ---- rows.c ---- */
extern void sync_reachable(CrateTarget *t, const TargetTable *table, TargetResult *res);
extern void crate_reachable(Target *target, const TargetTable *table, TargetResult *res);
extern void crate_page(Target *target, const TargetTable *table, const int *cols, int ncols,
					   const RowSet *after, int limit, bool refresh, RowSet *out,
					   TargetResult *res);
extern void crate_fetch(Target *target, const TargetTable *table, const int *cols, int ncols,
						const RowSet *keys, int lo, int hi, bool fresh, RowSet *out,
						TargetResult *res);
extern void crate_refresh(Target *target, const TargetTable *table, TargetResult *res);

#endif							/* CRATE_SYNC_CRATE_H */
