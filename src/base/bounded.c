/*-------------------------------------------------------------------------
 *
 * bounded.c
 *		Code of users that the worker runs, within bounds.
 *
 * Row filters, domains in the types of keys and expressions of indexes are
 * code of a table's owner, and the worker that runs it serves everybody.  What
 * such code can cost the others:
 *
 * Time.  A read is cancelled after READ_LIMIT (4 s), and again each second.
 * Code that goes on after it was cancelled has the worker end itself after
 * LAST_LIMIT (10 s), which no handler catches; another one starts at once.
 * Code that never looks whether it is cancelled (a loop in PL/Perl) has it
 * end after 15 s.  Then the table is left out for a while.  After a read that
 * was cancelled: for as long as it took; from the eighth within an hour on,
 * for twice, three times, ... and 20 times as long.  After one that ended the
 * worker, or when no read gets anywhere: for 10 s, then 1 min, and 10 min at
 * a time, or a minute if a function or the table was altered.  And all tables
 * of which a read was cancelled within an hour wait for twice as long as the
 * last one took.  So over a long time such a table costs the others a twentieth
 * of the worker's time at most (a seventh, if it is altered all the time), and
 * however many do so, together, a third.
 *
 * An owner's tables answer for each other, as a new one has no past: from the
 * second of them within an hour on that a read was cancelled of, or that ended
 * the worker, after each such read all tables of that owner that run users'
 * code wait: for as long as it took, from the third on for twice, from the
 * fourth on three times, ... and 20 times as long, and for what all those wait
 * of which a read was cancelled.  So the first reads of an owner's tables cost
 * the others two times LAST_LIMIT (20 s) at once, however many there are, then
 * a third of the time at most, and soon a twentieth.  What of an owner waits
 * for that reason says so.  After a read that took more than a quarter of
 * READ_LIMIT and was not cancelled they wait for as long as it took.
 *
 * In one turn of the worker's loop, tables that run users' code are served for
 * READ_LIMIT together; the others are served in every turn.
 *
 * The server.  Which relation is being read is written into a file, and so
 * outlives a crash, by the OOM killer say: the table is then left out for 1 s,
 * 1 s, 10 s, 1 min, 10 min, and an hour at a time, until all of it was read.
 * The file is not synced: it need not outlive the machine.
 *
 * Memory.  On Linux, RLIMIT_DATA makes that what goes beyond DATA_LIMIT (or
 * 4 times crate_sync.work_mem; for a row alone ROW_DATA_LIMIT) is an error of
 * the row, as any other.  Elsewhere it may not count all memory, or the size
 * now is not known, and nothing is limited; temp_file_limit holds everywhere.
 * There are no parallel workers, who would not be limited.
 *
 * The rest.  Such code runs as the table's owner, in a restricted operation,
 * in a transaction that is read only; settings it changes are as before at
 * its end, session-level advisory locks are released, and it writes nothing
 * into the server's log.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#if defined(__linux__) && defined(__GLIBC__)
#define HAVE_FRAMES
#include <dlfcn.h>
#include <execinfo.h>
#endif

#include "base/bounded.h"
#include "base/settings.h"
#include "catalog/pg_type.h"
#include "nodes/parsenodes.h"
#include "optimizer/planner.h"
#include "pgstat.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timeout.h"

/* times, in ms; all follow the first one, which tests make shorter */
#define READ_LIMIT		cs_debug_read_limit
#define LAST_LIMIT		(READ_LIMIT / 2 * 5)
#define REMEDY_PAUSE	((int64) READ_LIMIT * 15)	/* a minute */
#define FORGET_AFTER	((int64) READ_LIMIT * 900)	/* an hour */

/* pauses after the first, second, ... death, in READ_LIMIT / 4: 1, 1, 10 s, 1 min, 10 min, 1 h */
static const int pauses[] = {1, 1, 10, 60, 600, 3600};

/* who ended the worker, and not the server, begins with this one, and stays below the last */
#define SURELY_GUILTY	3

/* of the reads that are cancelled within an hour: those that find a row, and are punished least; and most */
#define CUTS_ALLOWED	6
#define CUTS_COUNTED	(CUTS_ALLOWED + 20)

/* bytes beyond what the process has */
#define DATA_LIMIT		((rlim_t) 256 * 1024 * 1024)
#define ROW_DATA_LIMIT	((rlim_t) 1024 * 1024 * 1024)

/* tables, and owners, that are remembered; the one that is due first makes room */
#define RECORDS			64
#define ACCOUNTS		64

/* of an owner's tables, those that answer for themselves alone; and most */
#define TABLES_ALLOWED	1
#define TABLES_COUNTED	(TABLES_ALLOWED + 20)

typedef struct Record
{
	Oid			relid;			/* InvalidOid: free */
	int			strikes;		/* deaths, and as good as that; 0: none */
	int			cuts;			/* reads cancelled */
	bool		sure;			/* it is to blame, whatever the reads that follow give */
	bool		crashed;		/* the server went down the last time */
	bool		told;			/* the log has said that it is left out */
	TimestampTz last;			/* strike or cut */
	TimestampTz until;			/* left out */
} Record;

/* an owner of such tables */
typedef struct Account
{
	Oid			owner;			/* InvalidOid: free */
	int			tables;			/* that many within an hour */
	TimestampTz last;			/* strike or cut of any of them */
	TimestampTz until;			/* none that runs code is read, if there are many */
	TimestampTz slow;			/* likewise, however many */
} Account;

/* the file, as it is */
typedef struct Memory
{
	char		magic[8];
	Oid			reading;		/* the relation that is being read; InvalidOid: none */
	Oid			owner;			/* whose */
	TimestampTz gate;			/* before that, nobody is read who was cancelled once */
	Record		records[RECORDS];
	Account		accounts[ACCOUNTS];
} Memory;

static Memory memory = {"crsync3"};
static int	memory_fd = -1;

static bool in_worker = false;
static void (*tell_remedy) (Oid relid);
static TimeoutId timer;
static int	statm_fd = -1;
static int	turn_ms = 0;		/* of this turn, in code of users */
static bool code_ran = false;	/* in this turn */
static volatile bool asked_to_die = false;	/* SIGTERM */
static planner_hook_type next_planner = NULL;
static emit_log_hook_type next_emit_log = NULL;

/* the read under way, or the last one */
static struct
{
	volatile bool active;
	bool		code;
	Oid			relid;
	Oid			owner;
	TimestampTz start;
	clock_t		cpu;			/* then */
	int			ms;
	volatile bool cut;
	volatile bool swallowed;	/* it went on after it was cancelled */
	volatile bool dying;
	bool		data_limited;
	struct rlimit data;			/* before */
}			section;

int
bounded_limit(void)
{
	return READ_LIMIT;
}

static inline int
section_ms(void)
{
	return (int) Min((GetCurrentTimestamp() - section.start) / 1000, INT_MAX);
}

/* ---------------------------------------------------------------------
 * Whose code
 * ------------------------------------------------------------------- */

/* ---------------------------------------------------------------------
 * What is remembered
 * ------------------------------------------------------------------- */

static char *
memory_path(Oid dboid)
{
	return psprintf(PGSTAT_STAT_PERMANENT_DIRECTORY "/crate_sync.%u", dboid);
}

void
bounded_unlink(Oid dboid)
{
	char	   *path = memory_path(dboid);

	(void) unlink(path);
	pfree(path);
}

/* for want of the file, everything else goes on */
static void
memory_write(Size from, Size len)
{
	if (memory_fd < 0)
	{
		char	   *path = memory_path(MyDatabaseId);

		memory_fd = BasicOpenFile(path, O_RDWR | O_CREAT | PG_BINARY);
		pfree(path);
		from = 0;
		len = sizeof(memory);
	}
	if (memory_fd >= 0 &&
		pg_pwrite(memory_fd, (char *) &memory + from, len, from) != len)
		ereport(DEBUG1, (errmsg("crate_sync: could not remember what is read: %m")));
}

static void
memory_write_all(void)
{
	memory_write(0, sizeof(memory));
}

static void
put_mark(Oid relid, Oid owner)
{
	memory.reading = relid;
	memory.owner = owner;
	memory_write(offsetof(Memory, reading), 2 * sizeof(Oid));
}

static void
memory_read(void)
{
	char	   *path = memory_path(MyDatabaseId);
	Memory		found;

	memory_fd = BasicOpenFile(path, O_RDWR | PG_BINARY);
	pfree(path);
	if (memory_fd >= 0 &&
		pg_pread(memory_fd, &found, sizeof(found), 0) == sizeof(found) &&
		memcmp(found.magic, memory.magic, sizeof(found.magic)) == 0)
		memory = found;
}

static Record *
record_of(Oid relid, bool create)
{
	Record	   *unused = &memory.records[0];

	for (int i = 0; i < RECORDS; i++)
	{
		Record	   *r = &memory.records[i];

		if (r->relid == relid)
			return r;
		if (!OidIsValid(r->relid) || (OidIsValid(unused->relid) && r->until < unused->until))
			unused = r;
	}
	if (!create)
		return NULL;
	memset(unused, 0, sizeof(Record));
	unused->relid = relid;
	return unused;
}

static Account *
account_of(Oid owner, bool create)
{
	Account    *unused = &memory.accounts[0];

	for (int i = 0; i < ACCOUNTS; i++)
	{
		Account    *a = &memory.accounts[i];

		if (a->owner == owner)
			return a;
		if (!OidIsValid(a->owner) ||
			(OidIsValid(unused->owner) && Max(a->until, a->slow) < Max(unused->until, unused->slow)))
			unused = a;
	}
	if (!create)
		return NULL;
	memset(unused, 0, sizeof(Account));
	unused->owner = owner;
	return unused;
}

/* the owner's, if his tables answer for each other; or NULL */
static Account *
account_of_many(Oid owner)
{
	Account    *a = account_of(owner, false);

	if (a == NULL || a->tables <= TABLES_ALLOWED ||
		GetCurrentTimestamp() > TimestampTzPlusMilliseconds(Max(a->last, a->until), FORGET_AFTER))
		return NULL;
	return a;
}

/* a read cost so many ms; first: of that table, within an hour */
static void
charge_owner(Oid owner, bool first, int cost)
{
	TimestampTz now = GetCurrentTimestamp();
	Account    *a;

	if (!OidIsValid(owner))
		return;
	a = account_of(owner, true);
	if (now > TimestampTzPlusMilliseconds(Max(a->last, a->until), FORGET_AFTER))
		a->tables = 0;
	if (first)
		a->tables = Min(a->tables + 1, TABLES_COUNTED);
	a->last = now;
	a->until = Max(a->until,
				   TimestampTzPlusMilliseconds(now, (int64) cost * Max(a->tables - TABLES_ALLOWED, 0)));
}

/* what was long ago is not held against it */
static void
forget_old(Record *r, TimestampTz now)
{
	if (now > TimestampTzPlusMilliseconds(Max(r->last, r->until), FORGET_AFTER))
	{
		r->strikes = r->cuts = 0;
		r->sure = false;
	}
}

/* leaves it out for so long; the next one that is as bad comes at a distance */
static void
leave_out(Record *r, int64 pause, int cost)
{
	TimestampTz now = GetCurrentTimestamp();

	r->last = now;
	r->until = Max(r->until, TimestampTzPlusMilliseconds(now, pause));
	memory.gate = Max(memory.gate, TimestampTzPlusMilliseconds(now, (int64) cost * 2));
}

static int64
pause_after(const Record *r)
{
	return (int64) pauses[Min(r->strikes, lengthof(pauses) - (r->crashed ? 0 : 1)) - 1] * READ_LIMIT / 4;
}

static void
strike(Oid relid, Oid owner, bool sure, bool crashed)
{
	Record	   *r = record_of(relid, true);

	forget_old(r, GetCurrentTimestamp());
	charge_owner(owner, r->strikes == 0 && r->cuts == 0, crashed ? READ_LIMIT / 4 : LAST_LIMIT);
	r->strikes++;
	if (sure)
		r->strikes = Max(r->strikes, SURELY_GUILTY);
	r->sure |= sure;
	r->crashed = crashed;
	r->told = false;
	r->until = 0;
	leave_out(r, pause_after(r), crashed ? 0 : LAST_LIMIT);
	memory_write_all();
}

void
bounded_blame(Oid relid, Oid owner)
{
	strike(relid, owner, true, false);
}

void
bounded_forgive(Oid relid)
{
	Record	   *r = record_of(relid, false);

	if (r == NULL || r->strikes == 0 || r->sure)
		return;
	r->strikes = 0;
	memory_write_all();
}

static TimestampTz
relation_retry_at(Oid relid)
{
	Record	   *r = record_of(relid, false);

	if (r == NULL)
		return 0;
	return GetCurrentTimestamp() < TimestampTzPlusMilliseconds(r->last, FORGET_AFTER) ?
		Max(r->until, memory.gate) : r->until;
}

/* until then his tables answer for each other */
static TimestampTz
owner_retry_at(Oid owner)
{
	Account    *a = OidIsValid(owner) ? account_of_many(owner) : NULL;

	return a ? Max(a->until, memory.gate) : 0;
}

TimestampTz
bounded_retry_at(Oid relid, Oid owner)
{
	Account    *a = OidIsValid(owner) ? account_of(owner, false) : NULL;
	TimestampTz at = Max(relation_retry_at(relid), Max(owner_retry_at(owner), a ? a->slow : 0));

	return at > GetCurrentTimestamp() ? at : 0;
}

/* a function, a type or a table was altered: perhaps that was the remedy */
static void
note_remedy(Oid relid)
{
	bool		any = false;

	for (int i = 0; i < RECORDS; i++)
	{
		Record	   *r = &memory.records[i];

		if (r->strikes == 0 || (OidIsValid(relid) && r->relid != relid))
			continue;
		r->until = Min(r->until, TimestampTzPlusMilliseconds(r->last, REMEDY_PAUSE));
		any = true;
	}
	for (int i = 0; i < ACCOUNTS && !OidIsValid(relid); i++)
	{
		Account    *a = &memory.accounts[i];

		a->until = Min(a->until, TimestampTzPlusMilliseconds(a->last, REMEDY_PAUSE));
	}
	if (!any)
		return;
	for (int i = 0; i < RECORDS; i++)
	{
		if (memory.records[i].strikes > 0)
			tell_remedy(memory.records[i].relid);
	}
}

static void
relcache_callback(Datum arg, Oid relid)
{
	note_remedy(relid);
}

static void
syscache_callback(Datum arg, int cacheid, uint32 hashvalue)
{
	note_remedy(InvalidOid);
}

/* ---------------------------------------------------------------------
 * Time
 * ------------------------------------------------------------------- */

void
bounded_die(SIGNAL_ARGS)
{
	asked_to_die = true;
	die(postgres_signal_arg);
}

/*
 * Ends the process from within the signal's handler, as nothing that was
 * interrupted will look for signals any more.  Not if that may be the C
 * library, whose memory is perhaps half allocated: soon, then.
 */
static void
leave_at_once(void)
{
#ifdef HAVE_FRAMES
	void	   *frames[16];
	int			n = backtrace(frames, lengthof(frames));
	Dl_info		libc;
	Dl_info		info;

	/* one hold is the handler's own */
	if (InterruptHoldoffCount > 1 || CritSectionCount > 0 || dladdr((void *) &malloc, &libc) == 0)
		return;
	for (int i = 0; i + 1 < n; i++)
	{
		/* the first frame in there is what brings signals; below it is what was interrupted */
		if (dladdr(frames[i], &info) == 0 || info.dli_fbase != libc.dli_fbase)
			continue;
		if (dladdr(frames[i + 1], &info) != 0 && info.dli_fbase == libc.dli_fbase)
			return;
		section.dying = true;
		proc_exit(1);
	}
#endif
}

/* in the signal's handler */
static void
time_is_over(void)
{
	int			ms;

	if (!section.active)
		return;
	ms = section_ms();
	/* it was taken, and yet we are here */
	if (section.cut && !QueryCancelPending)
		section.swallowed = true;
	section.cut = true;
	if (section.code && ms >= LAST_LIMIT)
	{
		if (section.swallowed)
		{
			section.dying = true;
			ProcDiePending = true;
		}
		/* a disk that stalls takes no time of the processor's */
		if (ms >= LAST_LIMIT / 2 * 3 &&
			(clock() - section.cpu) / (CLOCKS_PER_SEC / 1000) > LAST_LIMIT / 2)
			leave_at_once();
	}
	QueryCancelPending = true;
	InterruptPending = true;
	SetLatch(MyLatch);
	enable_timeout_after(timer, Max(READ_LIMIT / 4, 10));
}

/* ---------------------------------------------------------------------
 * Memory
 * ------------------------------------------------------------------- */

static void
limit_data(bool alone)
{
#ifdef __linux__
	char		buf[128];
	ssize_t		len = statm_fd >= 0 ? pread(statm_fd, buf, sizeof(buf) - 1, 0) : -1;
	unsigned long pages;
	struct rlimit limited;

	section.data_limited = false;
	if (len <= 0)
		return;
	buf[len] = '\0';
	/* size, resident, shared, text, lib, data and stack */
	if (sscanf(buf, "%*u %*u %*u %*u %*u %lu", &pages) != 1 ||
		getrlimit(RLIMIT_DATA, &section.data) != 0)
		return;
	limited = section.data;
	limited.rlim_cur = (rlim_t) pages * sysconf(_SC_PAGESIZE) +
		Max(alone ? ROW_DATA_LIMIT : DATA_LIMIT, (rlim_t) cs_work_mem * 1024 * 4);
	if (section.data.rlim_cur != RLIM_INFINITY && limited.rlim_cur >= section.data.rlim_cur)
		return;
	section.data_limited = setrlimit(RLIMIT_DATA, &limited) == 0;
#endif
}

static void
unlimit_data(void)
{
	if (section.data_limited)
		(void) setrlimit(RLIMIT_DATA, &section.data);
	section.data_limited = false;
}

/* ---------------------------------------------------------------------
 * A read
 * ------------------------------------------------------------------- */

void
bounded_begin(Oid relid, Oid owner, bool code, bool alone)
{
	if (!in_worker)
		return;
	Assert(!section.active);
	section.code = code;
	section.relid = relid;
	section.owner = owner;
	section.cut = section.swallowed = section.dying = false;
	section.start = GetCurrentTimestamp();
	section.cpu = clock();
	if (code)
	{
		put_mark(relid, owner);
		limit_data(alone);
		code_ran = true;
	}
	section.active = true;
	/* where nobody's code is to blame, one row may take longer */
	enable_timeout_after(timer, !code && alone ? LAST_LIMIT : READ_LIMIT);
}

void
bounded_end(void)
{
	Record	   *r;

	if (!section.active)
		return;
	disable_timeout(timer, false);
	section.active = false;
	/* it may have gone off at the last moment */
	QueryCancelPending = false;
	if (section.dying && !asked_to_die)
		ProcDiePending = false;
	section.ms = section_ms();
	if (!section.code)
		return;
	unlimit_data();
	put_mark(InvalidOid, InvalidOid);
	turn_ms += section.ms;
	if (section.cut)
	{
		r = record_of(section.relid, true);
		forget_old(r, GetCurrentTimestamp());
		charge_owner(section.owner, r->strikes == 0 && r->cuts == 0, section.ms);
		r->cuts = Min(r->cuts + 1, CUTS_COUNTED);
		leave_out(r, (int64) section.ms * Max(1, r->cuts - CUTS_ALLOWED), section.ms);
	}
	else if (section.ms > READ_LIMIT / 4)
	{
		TimestampTz until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), section.ms);

		/* slow, but it comes to an end: the others have as much time */
		r = record_of(section.relid, true);
		r->until = Max(r->until, until);
		if (OidIsValid(section.owner))
			account_of(section.owner, true)->slow = until;
	}
}

bool
bounded_cut(void)
{
	return section.cut;
}

int
bounded_ms(void)
{
	return section.ms;
}

/* outside of transactions */
void
bounded_new_turn(void)
{
	turn_ms = 0;
	/* its advisory locks would be ours for good */
	if (code_ran)
		LockReleaseSession(USER_LOCKMETHOD);
	code_ran = false;
}

bool
bounded_turn_has_time(void)
{
	return turn_ms < READ_LIMIT;
}

char *
bounded_hint(const char *schemaname, const char *relname)
{
	return psprintf("Mend what its row filter, its indexes or the domains of its key call: then it goes on by itself. "
					"Or SELECT crate_sync.remove_table(%s);",
					quote_literal_cstr(quote_qualified_identifier(schemaname, relname)));
}

char *
bounded_reproach(Oid relid, char **hint, bool *told)
{
	Record	   *r = record_of(relid, false);
	char	   *schemaname = get_namespace_name(get_rel_namespace(relid));
	char	   *relname = get_rel_name(relid);

	if (r == NULL || r->strikes == 0 || bounded_retry_at(relid, InvalidOid) == 0 ||
		schemaname == NULL || relname == NULL)
		return NULL;
	*hint = bounded_hint(schemaname, relname);
	*told = r->told;
	r->told = true;
	memory_write_all();
	if (r->crashed)
		return psprintf("the server went down while %s.%s was read", schemaname, relname);
	return psprintf("reading %s.%s does not end, and cannot be cancelled", schemaname, relname);
}

char *
bounded_others_reproach(Oid relid, Oid owner, char **hint)
{
	TimestampTz at = owner_retry_at(owner);

	if (at <= GetCurrentTimestamp() || at <= relation_retry_at(relid))
		return NULL;
	*hint = "See in crate_sync.tables which tables of that owner are in error, and why: once they are mended, or removed, this one goes on by itself.";
	return psprintf("code of its owner is not run for a while: reading %d of the owner's tables took too much of everybody's time",
					account_of(owner, false)->tables);
}

/* ---------------------------------------------------------------------
 * The process
 * ------------------------------------------------------------------- */

/* nobody else would be limited */
static PlannedStmt *
plan_without_workers(Query *parse, const char *query_string, int options, ParamListInfo params)
{
	if (section.active)
		options &= ~CURSOR_OPT_PARALLEL_OK;
	return next_planner ? next_planner(parse, query_string, options, params) :
		standard_planner(parse, query_string, options, params);
}

/* what such code says, a million times perhaps, is not for the server's log */
static void
emit_log(ErrorData *edata)
{
	if (section.active && section.code && edata->elevel < FATAL)
		edata->output_to_server = false;
	else if (section.active && section.dying)
		edata->message = psprintf("crate_sync: a read of relation %u took %d ms and could not be cancelled: the worker ends, another one starts",
								  section.relid, section_ms());
	if (next_emit_log)
		next_emit_log(edata);
}

bool
bounded_init(void (*remedy) (Oid relid))
{
	Oid			blamed;

	in_worker = true;
	tell_remedy = remedy;
	timer = RegisterTimeout(USER_TIMEOUT, time_is_over);
	next_planner = planner_hook;
	planner_hook = plan_without_workers;
	next_emit_log = emit_log_hook;
	emit_log_hook = emit_log;
	CacheRegisterRelcacheCallback(relcache_callback, (Datum) 0);
	CacheRegisterSyscacheCallback(PROCOID, syscache_callback, (Datum) 0);
	CacheRegisterSyscacheCallback(TYPEOID, syscache_callback, (Datum) 0);
	CacheRegisterSyscacheCallback(CONSTROID, syscache_callback, (Datum) 0);
#ifdef __linux__
	statm_fd = BasicOpenFile("/proc/self/statm", O_RDONLY);
#endif
#ifdef HAVE_FRAMES
	{
		void	   *frame;

		(void) backtrace(&frame, 1);	/* loads what it needs now */
	}
#endif

	memory_read();
	blamed = memory.reading;
	if (!OidIsValid(blamed))
		return false;
	strike(blamed, memory.owner, false, true);
	put_mark(InvalidOid, InvalidOid);
	return true;
}

bool
bounded_exit(void)
{
	if (!section.active || !section.code)
		return false;
	unlimit_data();
	/* whoever is asked to leave in the middle of a read that is no slow one has nobody to blame */
	if (section.dying || !asked_to_die || section_ms() >= READ_LIMIT)
		strike(section.relid, section.owner, true, false);
	put_mark(InvalidOid, InvalidOid);
	section.active = false;
	return section.dying;
}
