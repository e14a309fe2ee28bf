/*-------------------------------------------------------------------------
 *
 * sqlite.c
 *		The target that is an SQLite file, in this very process.
 *
 * A write is one SQLite transaction, guarded by the fence table inside of it,
 * and is over when submit returns: nothing of ours is ever under way.  Tables
 * of the schema doc keep their bare name, others are called "schema.table".
 *
 * Cells become values: numbers and strings as such, booleans 0 and 1,
 * timestamps integers (ms since 1970 UTC), NUMERIC text, since SQLite has no
 * exact decimals, objects and arrays their JSON text.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include <math.h>
#include <sqlite3.h>

#include "base/settings.h"
#include "base/text.h"
#include "common/hashfn.h"
#include "mb/pg_wchar.h"
#include "portability/instr_time.h"
#include "postmaster/interrupt.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "target/target.h"

#define SCHEME			"sqlite:"
#define FENCE_TABLE		"crate_sync_fence"
#define MARK_PREFIX		"crate_sync_mark_"
#define NOW_MS			"CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"
#define MAX_BUSY_WAIT	5000	/* ms for another process's write to end */
#define BUSY_SLEEP		5		/* ms between two looks */
#define PROGRESS_OPS	10000	/* virtual machine steps between two looks */

typedef struct SqliteTarget
{
	Target		base;
	char	   *path;
	sqlite3    *db;				/* NULL: not open */
	TimestampTz deadline;		/* of the present call */
	TimestampTz busy_deadline;
	bool		just_done;		/* a request was carried out since the last poll */
	StringInfoData scratch;		/* an unescaped string */

	/* the last error */
	TargetOutcome outcome;
	char		code[16];
	char		message[512];	/* UTF-8, as SQLite gives it */
} SqliteTarget;

/* ---------------------------------------------------------------------------
 * Errors
 * ------------------------------------------------------------------------ */

static bool pg_attribute_printf(4, 5)
fail_with(SqliteTarget *t, TargetOutcome outcome, const char *code, const char *fmt,...)
{
	va_list		args;

	t->outcome = outcome;
	strlcpy(t->code, code, sizeof(t->code));
	va_start(args, fmt);
	vsnprintf(t->message, sizeof(t->message), fmt, args);
	va_end(args);
	return false;
}

/* whose fault an SQLite error is; in_row: while a row was being written */
static TargetOutcome
outcome_of(int rc, bool in_row)
{
	switch (rc & 0xff)
	{
		case SQLITE_CONSTRAINT:
		case SQLITE_MISMATCH:
		case SQLITE_RANGE:
		case SQLITE_TOOBIG:
			return TARGET_REFUSED_ROWS;

			/*
			 * Also what an expression makes of a row's value; the table
			 * itself was looked at when the statement was prepared.
			 */
		case SQLITE_ERROR:
			return in_row ? TARGET_REFUSED_ROWS : TARGET_REFUSED_TABLE;

			/* the file as a whole: every table's trouble */
		case SQLITE_NOTADB:
		case SQLITE_CORRUPT:
		case SQLITE_CANTOPEN:
		case SQLITE_PERM:
		case SQLITE_READONLY:
		case SQLITE_AUTH:
			return TARGET_REFUSED_ALL;

			/* locked, full, interrupted, no memory, i/o error: rolled back */
		case SQLITE_BUSY:
		case SQLITE_LOCKED:
		case SQLITE_PROTOCOL:
		case SQLITE_FULL:
		case SQLITE_IOERR:
		case SQLITE_NOMEM:
		case SQLITE_INTERRUPT:
			return TARGET_BUSY;
		default:
			return TARGET_REFUSED_TABLE;
	}
}

/* notes SQLite's error rc; returns false */
static bool
fail(SqliteTarget *t, int rc, bool in_row)
{
	char		code[16];

	snprintf(code, sizeof(code), "sqlite %d", t->db ? sqlite3_extended_errcode(t->db) : rc);
	if ((rc & 0xff) == SQLITE_INTERRUPT && GetCurrentTimestamp() >= t->deadline)
		return fail_with(t, TARGET_BUSY, code, "timed out after %d ms", cs_request_timeout);
	if ((rc & 0xff) == SQLITE_CANTOPEN || (rc & 0xff) == SQLITE_NOTADB ||
		(rc & 0xff) == SQLITE_READONLY || (rc & 0xff) == SQLITE_PERM)
	{
		/* what the system says tells more than that it cannot be opened */
		int			err = t->db ? sqlite3_system_errno(t->db) : 0;

		return fail_with(t, outcome_of(rc, in_row), code, "%s: %s%s%s", t->path,
						 t->db ? sqlite3_errmsg(t->db) : sqlite3_errstr(rc),
						 err != 0 ? ": " : "", err != 0 ? strerror(err) : "");
	}
	return fail_with(t, outcome_of(rc, in_row), code, "%s",
					 t->db ? sqlite3_errmsg(t->db) : sqlite3_errstr(rc));
}

static void
result_fail(SqliteTarget *t, TargetResult *res)
{
	target_result_error(res, t->outcome, t->code, "%s",
						target_clean_text(t->message, strlen(t->message)));
}

static void
result_init(TargetResult *res)
{
	memset(res, 0, sizeof(*res));
	res->outcome = TARGET_OK;
	res->server_time = -1;
}

/* ---------------------------------------------------------------------------
 * The connection
 * ------------------------------------------------------------------------ */

static bool
leave_now(SqliteTarget *t)
{
	return QueryCancelPending || ProcDiePending || ShutdownRequestPending ||
		GetCurrentTimestamp() >= t->deadline;
}

/* SQLite's callback while a statement runs: not 0 interrupts it */
static int
on_progress(void *arg)
{
	return leave_now(arg) ? 1 : 0;
}

/* SQLite's callback when another process holds the lock: 0 gives up */
static int
on_busy(void *arg, int count)
{
	SqliteTarget *t = arg;
	TimestampTz now = GetCurrentTimestamp();

	if (count == 0)
		t->busy_deadline = TimestampTzPlusMilliseconds(now, Min(cs_request_timeout, MAX_BUSY_WAIT));
	if (now >= t->busy_deadline || leave_now(t))
		return 0;
	pg_usleep(BUSY_SLEEP * 1000L);
	return 1;
}

static void
disconnect(SqliteTarget *t)
{
	sqlite3_stmt *stmt;

	if (!t->db)
		return;
	/* an error may have left statements behind */
	while ((stmt = sqlite3_next_stmt(t->db, NULL)) != NULL)
		sqlite3_finalize(stmt);
	sqlite3_close_v2(t->db);
	t->db = NULL;
}

static bool
run(SqliteTarget *t, const char *sql)
{
	int			rc = sqlite3_exec(t->db, sql, NULL, NULL, NULL);

	return rc == SQLITE_OK ? true : fail(t, rc, false);
}

/* begins a call: opens the file unless it is open and still the one at path */
static bool
ready(SqliteTarget *t)
{
	int			rc;
	int			moved = 0;

	t->deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), cs_request_timeout);
	if (t->db)
	{
		/* what is written into a file without a name is lost */
		if (sqlite3_file_control(t->db, "main", SQLITE_FCNTL_HAS_MOVED, &moved) == SQLITE_OK &&
			moved)
		{
			/* the log at that path may be another file's by now */
			sqlite3_db_config(t->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
			disconnect(t);
		}
	}
	if (t->db)
	{
		/* an error may have left a transaction behind */
		if (!sqlite3_get_autocommit(t->db))
			(void) sqlite3_exec(t->db, "ROLLBACK", NULL, NULL, NULL);
		return true;
	}

	rc = sqlite3_open_v2(t->path, &t->db,
						 SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, NULL);
	if (rc != SQLITE_OK)
	{
		(void) fail(t, rc, false);
		disconnect(t);
		return false;
	}
	sqlite3_extended_result_codes(t->db, 1);
	sqlite3_busy_handler(t->db, on_busy, t);
	sqlite3_progress_handler(t->db, PROGRESS_OPS, on_progress, t);
	/* what a file brings along must not reach beyond the file */
	sqlite3_db_config(t->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
	sqlite3_db_config(t->db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);

	/*
	 * Readers do not hold us up in WAL mode; where the file system cannot do
	 * it, the other modes are right as well.  A commit is on disk when it
	 * returns.
	 */
	if (!run(t, "PRAGMA schema_version") || !run(t, "PRAGMA synchronous = FULL"))
	{
		disconnect(t);
		return false;
	}
	(void) sqlite3_exec(t->db, "PRAGMA journal_mode = WAL", NULL, NULL, NULL);
	return true;
}

/* sql is in the database's encoding; NULL after fail() */
static sqlite3_stmt *
prepare(SqliteTarget *t, const char *sql)
{
	sqlite3_stmt *stmt = NULL;
	char	   *utf8 = pg_server_to_any(sql, strlen(sql), PG_UTF8);
	int			rc = sqlite3_prepare_v2(t->db, utf8, -1, &stmt, NULL);

	if (utf8 != sql)
		pfree(utf8);
	if (rc == SQLITE_OK)
		return stmt;
	(void) fail(t, rc, false);
	return NULL;
}

static bool
bind_server_text(SqliteTarget *t, sqlite3_stmt *stmt, int i, const char *text)
{
	char	   *utf8 = pg_server_to_any(text, strlen(text), PG_UTF8);
	int			rc = sqlite3_bind_text(stmt, i, utf8, -1, SQLITE_TRANSIENT);

	if (utf8 != text)
		pfree(utf8);
	return rc == SQLITE_OK ? true : fail(t, rc, false);
}

/* runs a statement that gives no rows, and finalizes it */
static bool
finish(SqliteTarget *t, sqlite3_stmt *stmt)
{
	int			rc = sqlite3_step(stmt);
	bool		ok = rc == SQLITE_DONE || rc == SQLITE_ROW;

	if (!ok)
		(void) fail(t, rc, false);
	sqlite3_finalize(stmt);
	return ok;
}

/* ends a transaction; ok: commit */
static bool
end_transaction(SqliteTarget *t, bool ok)
{
	if (ok && run(t, "COMMIT"))
		return true;
	if (!sqlite3_get_autocommit(t->db))
		(void) sqlite3_exec(t->db, "ROLLBACK", NULL, NULL, NULL);
	return false;
}

/* the table's name in the file, unquoted; palloc'd */
static char *
file_name_of(const char *schema, const char *name)
{
	return strcmp(schema, "doc") == 0 ? pstrdup(name) : psprintf("%s.%s", schema, name);
}

static char *
sqlite_sql_name(const char *schema, const char *name)
{
	return target_quote_ident(file_name_of(schema, name));
}

static char *
table_sql(const TargetTable *table)
{
	return sqlite_sql_name(table->schema, table->name);
}

/* ---------------------------------------------------------------------------
 * Cells
 * ------------------------------------------------------------------------ */

static int
hex_value(const char *p)
{
	int			v = 0;

	for (int i = 0; i < 4; i++)
	{
		char		c = p[i];

		v = v << 4 | (c >= '0' && c <= '9' ? c - '0' : ((c | 0x20) - 'a' + 10) & 15);
	}
	return v;
}

/*
 * The text in a JSON string: a piece of the cell itself if it has no escapes
 * (then *copied is false), else in t->scratch.
 */
static const char *
string_of_cell(SqliteTarget *t, const char *cell, int len, int *textlen, bool *copied)
{
	const char *p = cell + 1;
	const char *end = cell + len - 1;
	StringInfo	buf = &t->scratch;

	*copied = false;
	*textlen = end - p;
	if (memchr(p, '\\', end - p) == NULL)
		return p;

	*copied = true;
	resetStringInfo(buf);
	while (p < end)
	{
		const char *esc = memchr(p, '\\', end - p);
		unsigned char utf8[8];
		pg_wchar	c;

		if (esc == NULL)
			esc = end;
		appendBinaryStringInfo(buf, p, esc - p);
		if (esc >= end - 1)
			break;
		p = esc + 2;
		switch (esc[1])
		{
			case 'n':
				appendStringInfoCharMacro(buf, '\n');
				break;
			case 'r':
				appendStringInfoCharMacro(buf, '\r');
				break;
			case 't':
				appendStringInfoCharMacro(buf, '\t');
				break;
			case 'b':
				appendStringInfoCharMacro(buf, '\b');
				break;
			case 'f':
				appendStringInfoCharMacro(buf, '\f');
				break;
			case 'u':
				if (end - p < 4)
				{
					p = end;
					break;
				}
				c = hex_value(p);
				p += 4;
				if (c >= 0xD800 && c < 0xDC00 && end - p >= 6 && p[0] == '\\' && p[1] == 'u')
				{
					c = 0x10000 + ((c - 0xD800) << 10) + (hex_value(p + 2) - 0xDC00);
					p += 6;
				}
				unicode_to_utf8(c, utf8);
				appendBinaryStringInfo(buf, (char *) utf8, pg_utf_mblen(utf8));
				break;
			default:
				appendStringInfoCharMacro(buf, esc[1]);
		}
	}
	*textlen = buf->len;
	return buf->data;
}

static bool
refuse_cell(SqliteTarget *t, const TargetColumn *col, const char *cell, int len)
{
	char	   *colname = pg_server_to_any(col->name, strlen(col->name), PG_UTF8);

	(void) fail_with(t, TARGET_REFUSED_ROWS, "value", "column \"%.100s\" of type %.50s cannot hold %.*s",
					 colname, col->type, Min(len, 100), cell);
	if (colname != col->name)
		pfree(colname);
	return false;
}

/*
 * Binds a cell to parameter i.  Its memory has to last until the statement is
 * reset.  A value that the column's type has no room for is refused, as the
 * other target would.
 */
static bool
bind_cell(SqliteTarget *t, sqlite3_stmt *stmt, int i, const TargetColumn *col,
		  const char *cell, int len)
{
	const char *text;
	int			textlen;
	bool		copied;
	char		tmp[64];
	char	   *end;
	int			rc;

	if (len == 4 && memcmp(cell, "null", 4) == 0)
		rc = sqlite3_bind_null(stmt, i);
	else
		switch (col->kind)
		{
			case CELL_BOOL:
				if (cell[0] != 't' && cell[0] != 'f')
					return refuse_cell(t, col, cell, len);
				rc = sqlite3_bind_int(stmt, i, cell[0] == 't');
				break;

			case CELL_INT:
			case CELL_TIMESTAMP:
				{
					int64		v;

					if (len >= sizeof(tmp) || len < 1)
						return refuse_cell(t, col, cell, len);
					memcpy(tmp, cell, len);
					tmp[len] = '\0';
					errno = 0;
					v = strtoll(tmp, &end, 10);
					if (*end != '\0' || errno != 0)
						return refuse_cell(t, col, cell, len);
					rc = sqlite3_bind_int64(stmt, i, v);
					break;
				}

			case CELL_FLOAT:
				{
					double		v;

					if (len >= sizeof(tmp) || len < 1)
						return refuse_cell(t, col, cell, len);
					memcpy(tmp, cell, len);
					tmp[len] = '\0';
					/* SQLite takes a NaN for NULL */
					if (strcmp(tmp, "\"NaN\"") == 0)
					{
						rc = sqlite3_bind_text(stmt, i, "NaN", 3, SQLITE_STATIC);
						break;
					}
					if (strcmp(tmp, "\"Infinity\"") == 0)
						v = HUGE_VAL;
					else if (strcmp(tmp, "\"-Infinity\"") == 0)
						v = -HUGE_VAL;
					else
					{
						v = strtod(tmp, &end);
						if (*end != '\0')
							return refuse_cell(t, col, cell, len);
					}
					rc = sqlite3_bind_double(stmt, i, v);
					break;
				}

			case CELL_TEXT:
			case CELL_NUMERIC:
				if (len < 2 || cell[0] != '"')
					return refuse_cell(t, col, cell, len);
				text = string_of_cell(t, cell, len, &textlen, &copied);
				rc = sqlite3_bind_text(stmt, i, text, textlen,
									   copied ? SQLITE_TRANSIENT : SQLITE_STATIC);
				break;

			default:
				rc = sqlite3_bind_text(stmt, i, cell, len, SQLITE_STATIC);
		}
	return rc == SQLITE_OK ? true : fail(t, rc, true);
}

/* appends text from the file, which can hold anything, as a JSON string */
static void
append_file_text(StringInfo buf, const char *text, int len)
{
	StringInfoData clean;

	if (pg_verify_mbstr(PG_UTF8, text, len, true))
	{
		types_json_utf8(buf, text, len);
		return;
	}
	/* not UTF-8, or with a NUL inside: bytes that are not ASCII become '?' */
	initStringInfo(&clean);
	for (int i = 0; i < len; i++)
		appendStringInfoChar(&clean, text[i] == '\0' || IS_HIGHBIT_SET(text[i]) ? '?' : text[i]);
	types_json_utf8(buf, clean.data, clean.len);
	pfree(clean.data);
}

/*
 * Appends a value of the present row as JSON.  kind: what the column should
 * hold, so that an equal value gives the cell that was sent; -1: as it is.
 */
static void
append_value(StringInfo buf, sqlite3_stmt *stmt, int i, int kind)
{
	switch (sqlite3_column_type(stmt, i))
	{
		case SQLITE_NULL:
			appendStringInfoString(buf, "null");
			break;
		case SQLITE_INTEGER:
			{
				int64		v = sqlite3_column_int64(stmt, i);

				if (kind == CELL_BOOL && (v == 0 || v == 1))
					appendStringInfoString(buf, v ? "true" : "false");
				else
				{
					enlargeStringInfo(buf, MAXINT8LEN + 1);
					buf->len += pg_lltoa(v, buf->data + buf->len);
				}
				break;
			}
		case SQLITE_FLOAT:
			types_json_float8(buf, sqlite3_column_double(stmt, i));
			break;
		case SQLITE_TEXT:
			{
				const char *text = (const char *) sqlite3_column_text(stmt, i);
				int			len = sqlite3_column_bytes(stmt, i);

				if (text == NULL)
					ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
				/* value_sql() has seen to it that this is JSON */
				if ((kind == CELL_JSON || kind == CELL_ARRAY) &&
					pg_verify_mbstr(PG_UTF8, text, len, true))
					appendBinaryStringInfo(buf, text, len);
				else
					append_file_text(buf, text, len);
				break;
			}
		default:				/* blob */
			{
				const unsigned char *b = sqlite3_column_blob(stmt, i);
				int			len = sqlite3_column_bytes(stmt, i);

				appendStringInfoString(buf, "\"\\\\x");
				for (int j = 0; j < len; j++)
					appendStringInfo(buf, "%02x", b[j]);
				appendStringInfoChar(buf, '"');
			}
	}
}

/*
 * Others can put keys into the file that none of our cells spells: a blob, text
 * that is not UTF-8 or has a NUL inside, a value of another class than the
 * column's.  So that they can be told apart and deleted, such a key's cell is an
 * object of its class and its bytes; no key of a source is one.  False: it is
 * none of those.
 */
static bool
append_foreign_key(StringInfo buf, sqlite3_stmt *stmt, int i, CellKind kind)
{
	int			type = sqlite3_column_type(stmt, i);
	bool		number = kind == CELL_INT || kind == CELL_TIMESTAMP || kind == CELL_BOOL;
	const char *bytes;
	int			len;

	switch (type)
	{
		case SQLITE_INTEGER:
			if (number || kind == CELL_FLOAT)
				return false;
			appendStringInfo(buf, "{\"integer\":" INT64_FORMAT "}", (int64) sqlite3_column_int64(stmt, i));
			return true;
		case SQLITE_FLOAT:
			if (kind == CELL_FLOAT || isnan(sqlite3_column_double(stmt, i)) || isinf(sqlite3_column_double(stmt, i)))
				return false;
			appendStringInfo(buf, "{\"real\":%.17g}", sqlite3_column_double(stmt, i));
			return true;
		case SQLITE_TEXT:
			bytes = (const char *) sqlite3_column_text(stmt, i);
			len = sqlite3_column_bytes(stmt, i);
			if (!number && (kind != CELL_FLOAT || (len == 3 && memcmp(bytes, "NaN", 3) == 0)) &&
				pg_verify_mbstr(PG_UTF8, bytes, len, true))
				return false;
			break;
		case SQLITE_BLOB:
			bytes = sqlite3_column_blob(stmt, i);
			len = sqlite3_column_bytes(stmt, i);
			break;
		default:
			return false;
	}
	appendStringInfo(buf, "{\"%s\":\"", type == SQLITE_TEXT ? "text" : "blob");
	for (int j = 0; j < len; j++)
		appendStringInfo(buf, "%02x", (unsigned char) bytes[j]);
	appendStringInfoString(buf, "\"}");
	return true;
}

/* binds what append_foreign_key() has made of a key, to parameter i */
static int
bind_foreign_key(sqlite3_stmt *stmt, int i, const char *cell, int len)
{
	const char *value = memchr(cell, ':', len);
	char	   *text;
	char	   *bytes;
	int			n = 0;

	if (value == NULL)
		return SQLITE_MISMATCH;
	value++;
	text = pnstrdup(value, cell + len - value);
	if (cell[2] == 'i')
		return sqlite3_bind_int64(stmt, i, strtoll(text, NULL, 10));
	if (cell[2] == 'r')
		return sqlite3_bind_double(stmt, i, strtod(text, NULL));
	bytes = palloc(len);
	for (const char *p = text + 1; isxdigit((unsigned char) p[0]) && isxdigit((unsigned char) p[1]); p += 2)
	{
		char		hex[3] = {p[0], p[1], '\0'};

		bytes[n++] = (char) strtol(hex, NULL, 16);
	}
	return cell[2] == 't' ? sqlite3_bind_text(stmt, i, bytes, n, SQLITE_TRANSIENT) :
		sqlite3_bind_blob(stmt, i, bytes, n, SQLITE_TRANSIENT);
}

/* how a column is selected for append_value(); palloc'd */
static char *
value_sql(const TargetColumn *col)
{
	char	   *name = target_quote_ident(col->name);

	/* somebody may have put text there that is no JSON */
	if (col->kind == CELL_JSON || col->kind == CELL_ARRAY)
		return psprintf("CASE WHEN json_valid(%s) THEN %s ELSE json_quote(%s) END",
						name, name, name);
	return name;
}

/* ---------------------------------------------------------------------------
 * The fence
 * ------------------------------------------------------------------------ */

static bool
make_fence_table(SqliteTarget *t)
{
	return run(t, "CREATE TABLE IF NOT EXISTS " FENCE_TABLE " (table_name TEXT NOT NULL, "
			   "lane INTEGER NOT NULL, epoch INTEGER NOT NULL, written INTEGER NOT NULL DEFAULT 0, "
			   "PRIMARY KEY (table_name, lane))");
}

/* runs a statement about (table, lane), which are its parameters 1 and 2 */
static sqlite3_stmt *
fence_statement(SqliteTarget *t, const char *file_name, int lane, const char *sql)
{
	sqlite3_stmt *stmt = prepare(t, sql);

	if (!stmt)
		return NULL;
	if (bind_server_text(t, stmt, 1, file_name))
	{
		if (sqlite3_bind_parameter_count(stmt) > 1)
			(void) sqlite3_bind_int(stmt, 2, lane);
		return stmt;
	}
	sqlite3_finalize(stmt);
	return NULL;
}

/* epoch 0: there is none; false: see the error */
static bool
get_fence(SqliteTarget *t, const TargetTable *table, int lane, int64 *epoch, bool *written)
{
	sqlite3_stmt *stmt = fence_statement(t, file_name_of(table->schema, table->name), lane,
										 "SELECT epoch, written FROM " FENCE_TABLE
										 " WHERE table_name = ?1 AND lane = ?2");
	int			rc;

	*epoch = 0;
	*written = false;
	if (!stmt)
		return false;
	rc = sqlite3_step(stmt);
	if (rc == SQLITE_ROW)
	{
		*epoch = sqlite3_column_int64(stmt, 0);
		*written = sqlite3_column_int(stmt, 1) != 0;
	}
	else if (rc != SQLITE_DONE)
		(void) fail(t, rc, false);
	sqlite3_finalize(stmt);
	return rc == SQLITE_ROW || rc == SQLITE_DONE;
}

/* whether rows of ours may be in the table, from now on */
static bool
set_written(SqliteTarget *t, const char *file_name, bool written)
{
	sqlite3_stmt *stmt = fence_statement(t, file_name, 0, written ?
										 "UPDATE " FENCE_TABLE " SET written = 1 WHERE table_name = ?1" :
										 "UPDATE " FENCE_TABLE " SET written = 0 WHERE table_name = ?1");

	return stmt && finish(t, stmt);
}

static void
sqlite_raise_fence(Target *target, const TargetTable *table, int lane, int64 *epoch,
				   TargetResult *res)
{
	SqliteTarget *t = (SqliteTarget *) target;
	bool		ok;
	bool		written;
	sqlite3_stmt *stmt;

	result_init(res);
	/* the write lock: whatever passed an older epoch has ended */
	ok = ready(t) && run(t, "BEGIN IMMEDIATE");
	if (ok)
	{
		ok = make_fence_table(t);
		if (ok)
		{
			stmt = fence_statement(t, file_name_of(table->schema, table->name), lane,
								   "INSERT INTO " FENCE_TABLE " (table_name, lane, epoch) VALUES (?1, ?2, " NOW_MS ")"
								   " ON CONFLICT (table_name, lane) DO UPDATE SET epoch = max(epoch + 1, excluded.epoch)");
			ok = stmt && finish(t, stmt);
		}
		ok = ok && get_fence(t, table, lane, epoch, &written);
		ok = end_transaction(t, ok);
	}
	if (!ok)
		result_fail(t, res);
}

static void
sqlite_count_lanes(Target *target, const TargetTable *table, int *n, TargetResult *res)
{
	SqliteTarget *t = (SqliteTarget *) target;
	sqlite3_stmt *stmt = NULL;
	bool		ok;

	result_init(res);
	*n = 0;
	ok = ready(t) && run(t, "BEGIN IMMEDIATE");
	if (ok)
	{
		ok = make_fence_table(t);
		if (ok)
		{
			stmt = fence_statement(t, file_name_of(table->schema, table->name), 0,
								   "SELECT max(lane) + 1 FROM " FENCE_TABLE " WHERE table_name = ?1");
			ok = stmt != NULL;
		}
		if (ok && sqlite3_step(stmt) == SQLITE_ROW)
			*n = sqlite3_column_int(stmt, 0);
		sqlite3_finalize(stmt);
		ok = end_transaction(t, ok);
	}
	if (!ok)
		result_fail(t, res);
}

static void
sqlite_drop_fence(Target *target, const TargetTable *table, int lane, TargetResult *res)
{
	SqliteTarget *t = (SqliteTarget *) target;
	bool		ok;

	result_init(res);
	ok = ready(t) && run(t, "BEGIN IMMEDIATE");
	if (ok)
	{
		ok = make_fence_table(t);
		if (ok)
		{
			sqlite3_stmt *stmt = fence_statement(t, file_name_of(table->schema, table->name), lane,
												 "DELETE FROM " FENCE_TABLE
												 " WHERE table_name = ?1 AND (?2 < 0 OR lane = ?2)");

			ok = stmt && finish(t, stmt);
		}
		ok = end_transaction(t, ok);
	}
	if (!ok)
		result_fail(t, res);
}

static void
sqlite_read_fence(Target *target, const TargetTable *table, int lane, int64 *epoch,
				  TargetResult *res)
{
	SqliteTarget *t = (SqliteTarget *) target;
	bool		written;

	result_init(res);
	if (!ready(t) || !get_fence(t, table, lane, epoch, &written))
		result_fail(t, res);
}

/* ---------------------------------------------------------------------------
 * Writes
 * ------------------------------------------------------------------------ */

static char *
upsert_sql(const TargetTable *table)
{
	StringInfoData buf;
	const char *sep;
	bool		any = false;

	initStringInfo(&buf);
	appendStringInfo(&buf, "INSERT INTO %s (", table_sql(table));
	for (int i = 0; i < table->ncols; i++)
		appendStringInfo(&buf, "%s%s", i ? ", " : "", target_quote_ident(table->cols[i].name));
	appendStringInfoString(&buf, ") VALUES (");
	for (int i = 0; i < table->ncols; i++)
		appendStringInfo(&buf, "%s?%d", i ? ", " : "", i + 1);
	appendStringInfoString(&buf, ") ON CONFLICT (");
	for (int i = 0; i < table->nkeys; i++)
		appendStringInfo(&buf, "%s%s", i ? ", " : "",
						 target_quote_ident(table->cols[table->keys[i]].name));
	appendStringInfoString(&buf, ") DO UPDATE SET ");
	sep = "";
	for (int i = 0; i < table->ncols; i++)
	{
		char	   *name = target_quote_ident(table->cols[i].name);

		if (table->cols[i].key)
			continue;
		appendStringInfo(&buf, "%s%s = excluded.%s", sep, name, name);
		sep = ", ";
		any = true;
	}
	/* all key: something to set, so that the row counts as written */
	if (!any)
	{
		char	   *name = target_quote_ident(table->cols[table->keys[0]].name);

		appendStringInfo(&buf, "%s = excluded.%s", name, name);
	}
	return buf.data;
}

/* " WHERE k1 = ?1 AND k2 = ?2", in key order */
static char *
where_key(const TargetTable *table)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < table->nkeys; i++)
		appendStringInfo(&buf, "%s%s = ?%d", i ? " AND " : " WHERE ",
						 target_quote_ident(table->cols[table->keys[i]].name), i + 1);
	return buf.data;
}

static bool
bind_key(SqliteTarget *t, sqlite3_stmt *stmt, const TargetTable *table, const RowSet *rows,
		 int row)
{
	for (int i = 0; i < table->nkeys; i++)
	{
		int			len;
		const char *cell = rowset_get(rows, row, i, &len);

		if (len > 0 && cell[0] == '{')
		{
			int			rc = bind_foreign_key(stmt, i + 1, cell, len);

			if (rc != SQLITE_OK)
				return fail(t, rc, true);
		}
		else if (!bind_cell(t, stmt, i + 1, &table->cols[table->keys[i]], cell, len))
			return false;
	}
	return true;
}

static bool
upsert_rows(SqliteTarget *t, TargetRequest *req)
{
	const TargetTable *table = req->table;
	const RowSet *rows = req->rows;
	sqlite3_stmt *stmt = prepare(t, upsert_sql(table));
	bool		ok = stmt != NULL;

	for (int row = req->lo; ok && row < req->hi; row++)
	{
		int			rc;

		if (rows->dead && rows->dead[row])
			continue;
		for (int i = 0; ok && i < table->ncols; i++)
		{
			int			len;
			const char *cell = rowset_get(rows, row, i, &len);

			ok = bind_cell(t, stmt, i + 1, &table->cols[i], cell, len);
			req->bytes_sent += len;
		}
		if (!ok)
			break;
		rc = sqlite3_step(stmt);
		if (rc != SQLITE_DONE)
		{
			ok = fail(t, rc, true);
			break;
		}
		/* 0: a trigger of the user's made SQLite ignore the row */
		if (sqlite3_changes(t->db) > 0)
			req->nwritten++;
		else if (req->explain)
			ok = fail_with(t, TARGET_REFUSED_ROWS, "ignored",
						   "a trigger of the SQLite table ignores the row");
		sqlite3_reset(stmt);
	}
	sqlite3_finalize(stmt);
	return ok;
}

static bool
delete_rows(SqliteTarget *t, TargetRequest *req)
{
	const TargetTable *table = req->table;
	const RowSet *rows = req->rows;
	char	   *where = where_key(table);
	sqlite3_stmt *del = prepare(t, psprintf("DELETE FROM %s%s", table_sql(table), where));
	sqlite3_stmt *look = del ? prepare(t, psprintf("SELECT 1 FROM %s%s", table_sql(table), where)) : NULL;
	bool		ok = del && look;

	for (int row = req->lo; ok && row < req->hi; row++)
	{
		int			rc;

		if (rows->dead && rows->dead[row])
			continue;
		for (int i = 0; i < table->nkeys; i++)
		{
			int			len;

			(void) rowset_get(rows, row, i, &len);
			req->bytes_sent += len;
		}
		/* a key the column cannot hold is not there */
		if (!bind_key(t, del, table, rows, row))
		{
			req->nwritten++;
			continue;
		}
		rc = sqlite3_step(del);
		if (rc != SQLITE_DONE)
		{
			ok = fail(t, rc, true);
			break;
		}
		/* none: it was not there, or a trigger of the user's has kept it */
		if (sqlite3_changes(t->db) == 0)
		{
			ok = bind_key(t, look, table, rows, row);
			rc = ok ? sqlite3_step(look) : SQLITE_DONE;
			if (rc == SQLITE_DONE)
				req->nwritten++;
			else if (rc != SQLITE_ROW)
				ok = fail(t, rc, true);
			sqlite3_reset(look);
		}
		else
			req->nwritten++;
		sqlite3_reset(del);
	}
	sqlite3_finalize(del);
	sqlite3_finalize(look);
	return ok;
}

static bool
sqlite_submit(Target *target, TargetRequest *req)
{
	SqliteTarget *t = (SqliteTarget *) target;
	instr_time	start,
				end;
	int64		epoch;
	bool		written;
	bool		ok;
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext, "crate_sync sqlite",
											  ALLOCSET_SMALL_SIZES);
	MemoryContext oldcxt = MemoryContextSwitchTo(cxt);

	INSTR_TIME_SET_CURRENT(start);
	req->nwritten = 0;
	req->nrequests = 1;
	req->over = true;			/* rolled back, if anything */
	ok = ready(t) && run(t, "BEGIN IMMEDIATE");
	if (ok)
	{
		ok = get_fence(t, req->table, req->lane, &epoch, &written);
		if (ok && epoch != req->epoch)
		{
			/* upserts show it by writing nothing; a delete has to say so */
			if (req->kind == TARGET_DELETE)
				ok = fail_with(t, TARGET_UNKNOWN, "fence", "another writer has raised the fence");
		}
		else if (ok)
		{
			ok = req->kind == TARGET_UPSERT ? upsert_rows(t, req) : delete_rows(t, req);
			if (ok && !written && req->kind == TARGET_UPSERT)
				ok = set_written(t, file_name_of(req->table->schema, req->table->name), true);
		}
		ok = end_transaction(t, ok);
	}
	req->outcome = TARGET_OK;
	if (!ok)
	{
		char	   *message = target_clean_text(t->message, strlen(t->message));

		req->nwritten = 0;
		req->outcome = t->outcome;
		strlcpy(req->code, t->code, sizeof(req->code));
		req->message = strdup(message);
	}
	MemoryContextSwitchTo(oldcxt);
	MemoryContextDelete(cxt);
	INSTR_TIME_SET_CURRENT(end);
	INSTR_TIME_SUBTRACT(end, start);
	req->elapsed = INSTR_TIME_GET_MILLISEC(end);
	req->done = true;
	t->just_done = true;
	return true;
}

static void
sqlite_poll(Target *target, long timeout, uint32 wait_event)
{
	SqliteTarget *t = (SqliteTarget *) target;

	/* a caller that has just submitted waits for a request that is done */
	if (t->just_done)
	{
		t->just_done = false;
		return;
	}
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH |
					 (timeout >= 0 ? WL_TIMEOUT : 0), timeout, wait_event);
}

static void
sqlite_abandon(Target *target, TargetRequest *req)
{
	/* nothing is ever under way */
}

/* ---------------------------------------------------------------------------
 * Statements
 * ------------------------------------------------------------------------ */

/*
 * SQLite's callback while it prepares a statement of a caller's.  Whoever may
 * query the target may not have the server open other files, change how this
 * one is written, or leave a transaction open.
 */
static int
authorize(void *arg, int action, const char *a, const char *b, const char *dbname,
		  const char *trigger)
{
	static const char *const pragmas[] = {
		"table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo",
		"foreign_key_list", "foreign_key_check", "integrity_check", "quick_check"
	};

	switch (action)
	{
		case SQLITE_ATTACH:		/* VACUUM INTO does it too */
		case SQLITE_TRANSACTION:
		case SQLITE_SAVEPOINT:
			return SQLITE_DENY;
		case SQLITE_FUNCTION:
			return b && pg_strcasecmp(b, "load_extension") == 0 ? SQLITE_DENY : SQLITE_OK;
		case SQLITE_PRAGMA:
			if (b == NULL)
				return SQLITE_OK;
			for (int i = 0; i < lengthof(pragmas); i++)
				if (pg_strcasecmp(a, pragmas[i]) == 0)
					return SQLITE_OK;
			return SQLITE_DENY;
		default:
			return SQLITE_OK;
	}
}

/* binds the elements of a JSON array (UTF-8) */
static bool
bind_args(SqliteTarget *t, sqlite3_stmt *stmt, const char *args_json)
{
	sqlite3_stmt *args;
	int			n = 0;
	int			rc;
	bool		ok = true;

	if (args_json == NULL)
		return true;
	args = prepare(t, "SELECT value, type FROM json_each(?1)");
	if (!args)
		return false;
	(void) sqlite3_bind_text(args, 1, args_json, -1, SQLITE_TRANSIENT);
	while (ok && (rc = sqlite3_step(args)) == SQLITE_ROW)
	{
		if (++n > sqlite3_bind_parameter_count(stmt))
			break;
		rc = sqlite3_bind_value(stmt, n, sqlite3_column_value(args, 0));
		if (rc != SQLITE_OK)
			ok = fail(t, rc, true);
	}
	if (ok && rc != SQLITE_DONE && rc != SQLITE_ROW)
		ok = fail(t, rc, true);
	else if (ok && n != sqlite3_bind_parameter_count(stmt))
		ok = fail_with(t, TARGET_REFUSED_ROWS, "args",
					   "the statement has %d parameter(s), %s are given",
					   sqlite3_bind_parameter_count(stmt),
					   n > sqlite3_bind_parameter_count(stmt) ? "more" : "fewer");
	sqlite3_finalize(args);
	return ok;
}

/* reads what a statement gives */
static bool
read_rows(SqliteTarget *t, sqlite3_stmt *stmt, TargetResult *res)
{
	int			maxrows = 0;
	int			rc;
	StringInfoData buf;

	initStringInfo(&buf);
	res->ncols = sqlite3_column_count(stmt);
	if (res->ncols > 0)
		res->colnames = palloc(sizeof(char *) * res->ncols);
	for (int i = 0; i < res->ncols; i++)
	{
		const char *name = sqlite3_column_name(stmt, i);

		res->colnames[i] = name ? target_clean_text(name, strlen(name)) : pstrdup("?");
	}
	while ((rc = sqlite3_step(stmt)) == SQLITE_ROW)
	{
		char	  **cells;

		if (res->nrows >= maxrows)
		{
			maxrows = maxrows ? maxrows * 2 : 64;
			res->cells = res->cells ?
				repalloc_huge(res->cells, sizeof(char **) * maxrows) :
				palloc(sizeof(char **) * maxrows);
		}
		cells = res->cells[res->nrows] = palloc(sizeof(char *) * Max(res->ncols, 1));
		for (int i = 0; i < res->ncols; i++)
		{
			resetStringInfo(&buf);
			append_value(&buf, stmt, i, -1);
			cells[i] = palloc(buf.len + 1);
			memcpy(cells[i], buf.data, buf.len + 1);
		}
		res->nrows++;
	}
	pfree(buf.data);
	res->rowcount = sqlite3_stmt_readonly(stmt) ? res->nrows : sqlite3_changes(t->db);
	return rc == SQLITE_DONE ? true : fail(t, rc, true);
}

static void
sqlite_statement(Target *target, const char *sql, const char *args_json, TargetResult *res)
{
	SqliteTarget *t = (SqliteTarget *) target;
	sqlite3_stmt *stmt = NULL;
	const char *tail = NULL;
	char	   *utf8;
	int			rc;
	bool		ok = true;

	result_init(res);
	if (!ready(t))
	{
		result_fail(t, res);
		return;
	}
	sqlite3_set_authorizer(t->db, authorize, NULL);
	utf8 = pg_server_to_any(sql, strlen(sql), PG_UTF8);
	rc = sqlite3_prepare_v2(t->db, utf8, -1, &stmt, &tail);
	if (rc != SQLITE_OK)
		ok = fail(t, rc, true);
	else if (stmt == NULL)
		ok = fail_with(t, TARGET_REFUSED_ROWS, "empty", "the statement is empty");
	else
	{
		sqlite3_stmt *more = NULL;

		/* comments and white space make no statement */
		if (*tail && (sqlite3_prepare_v2(t->db, tail, -1, &more, NULL) != SQLITE_OK || more))
			ok = fail_with(t, TARGET_REFUSED_ROWS, "many", "there is more than one statement");
		sqlite3_finalize(more);
	}
	ok = ok && bind_args(t, stmt, args_json) && read_rows(t, stmt, res);
	sqlite3_finalize(stmt);
	sqlite3_set_authorizer(t->db, NULL, NULL);
	if (!ok)
	{
		/* the statement's fault, not the file's */
		if (strcmp(t->code, "sqlite 23") == 0)
			(void) fail_with(t, TARGET_REFUSED_ROWS, "sqlite 23",
							 "not allowed here: ATTACH, VACUUM, transaction control, PRAGMA that sets something");
		result_fail(t, res);
	}
}

static void
sqlite_check(Target *target, TargetInfo *info, TargetResult *res)
{
	SqliteTarget *t = (SqliteTarget *) target;
	int			num = sqlite3_libversion_number();

	result_init(res);
	strlcpy(info->product, "SQLite", sizeof(info->product));
	strlcpy(info->version, sqlite3_libversion(), sizeof(info->version));
	info->version_num = num / 1000000 * 10000 + num / 1000 % 1000 * 100 + num % 1000;
	if (!ready(t))
		result_fail(t, res);
	else if (sqlite3_db_readonly(t->db, "main"))
		target_result_error(res, TARGET_REFUSED_ALL, "readonly", "%s cannot be written", t->path);
}

/* ---------------------------------------------------------------------------
 * Tables
 * ------------------------------------------------------------------------ */

/* REAL would make numbers of NUMERIC's text, and so would JSON as a name */
static const char *
declared_type(CellKind kind)
{
	switch (kind)
	{
		case CELL_INT:
			return "INTEGER";
		case CELL_FLOAT:
			return "REAL";
		case CELL_BOOL:
			return "BOOLEAN";
		case CELL_TIMESTAMP:
			return "TIMESTAMP";
		default:
			return "TEXT";
	}
}

/* what SQLite makes of a declared type: the rules of its manual, in their order */
static const char *
affinity(const char *type)
{
	char	   *upper = pstrdup(type);

	for (char *p = upper; *p; p++)
		*p = pg_ascii_toupper((unsigned char) *p);
	if (strstr(upper, "INT"))
		return "INTEGER";
	if (strstr(upper, "CHAR") || strstr(upper, "CLOB") || strstr(upper, "TEXT"))
		return "TEXT";
	if (strstr(upper, "BLOB") || *upper == '\0')
		return "BLOB";
	if (strstr(upper, "REAL") || strstr(upper, "FLOA") || strstr(upper, "DOUB"))
		return "REAL";
	return "NUMERIC";
}

static char *
sqlite_ddl(const TargetTable *table)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "CREATE TABLE %s (\n", table_sql(table));
	for (int i = 0; i < table->ncols; i++)
		appendStringInfo(&buf, "    %s %s%s,\n", target_quote_ident(table->cols[i].name),
						 declared_type(table->cols[i].kind),
						 table->cols[i].key ? " NOT NULL" : "");
	appendStringInfoString(&buf, "    PRIMARY KEY (");
	for (int i = 0; i < table->nkeys; i++)
		appendStringInfo(&buf, "%s%s", i ? ", " : "",
						 target_quote_ident(table->cols[table->keys[i]].name));
	appendStringInfoString(&buf, ")\n)");
	return buf.data;
}

static bool pg_attribute_printf(2, 3)
does_not_fit(SqliteTarget *t, const char *fmt,...)
{
	char		message[400];
	char	   *utf8;
	va_list		args;

	va_start(args, fmt);
	vsnprintf(message, sizeof(message), fmt, args);
	va_end(args);
	utf8 = pg_server_to_any(message, strlen(message), PG_UTF8);
	return fail_with(t, TARGET_REFUSED_TABLE, "mismatch", "%s", utf8);
}

/* compares the table that is there with the one wanted; adds what it lacks */
static bool
fit_table(SqliteTarget *t, const TargetTable *table, const char *file_name, bool add, bool *altered)
{
	sqlite3_stmt *stmt = prepare(t, "SELECT name, type, \"notnull\", dflt_value IS NULL, pk"
								 " FROM pragma_table_info(?1) ORDER BY cid");
	bool	   *seen = palloc0(sizeof(bool) * table->ncols);
	char	  **names = palloc(sizeof(char *) * table->ncols);	/* UTF-8 */
	int			npk = 0;
	int			rc;
	bool		ok = true;

	if (!stmt || !bind_server_text(t, stmt, 1, file_name))
	{
		sqlite3_finalize(stmt);
		return false;
	}
	for (int i = 0; i < table->ncols; i++)
		names[i] = pg_server_to_any(table->cols[i].name, strlen(table->cols[i].name), PG_UTF8);
	while (ok && (rc = sqlite3_step(stmt)) == SQLITE_ROW)
	{
		const char *rawname = (const char *) sqlite3_column_text(stmt, 0);
		const char *rawtype = (const char *) sqlite3_column_text(stmt, 1);
		char	   *name = target_clean_text(rawname ? rawname : "", rawname ? strlen(rawname) : 0);
		char	   *type = target_clean_text(rawtype ? rawtype : "", rawtype ? strlen(rawtype) : 0);
		bool		notnull = sqlite3_column_int(stmt, 2) != 0;
		bool		no_default = sqlite3_column_int(stmt, 3) != 0;
		int			pk = sqlite3_column_int(stmt, 4);
		int			i;

		npk = Max(npk, pk);
		for (i = 0; i < table->ncols; i++)
			if (rawname && strcmp(names[i], rawname) == 0)
				break;
		if (i == table->ncols)
		{
			if (pk > 0)
				ok = does_not_fit(t, "its primary key has the column \"%s\"", name);
			else if (notnull && no_default)
				ok = does_not_fit(t, "column \"%s\" is NOT NULL and has no default", name);
			continue;
		}
		seen[i] = true;
		if (strcmp(affinity(type), affinity(declared_type(table->cols[i].kind))) != 0)
			ok = does_not_fit(t, "column \"%s\" is %s, for %s it has to be %s", name, type,
							  table->cols[i].type, declared_type(table->cols[i].kind));
		else if (pk > 0 && (pk > table->nkeys || table->keys[pk - 1] != i))
			ok = does_not_fit(t, "column \"%s\" is not in its place in the primary key", name);
	}
	if (ok && rc != SQLITE_DONE)
		ok = fail(t, rc, false);
	sqlite3_finalize(stmt);
	if (ok && npk != table->nkeys)
		ok = does_not_fit(t, "its primary key has %d columns, not %d", npk, table->nkeys);

	for (int i = 0; ok && i < table->ncols; i++)
	{
		sqlite3_stmt *alter;

		if (seen[i])
			continue;
		if (table->cols[i].key)
			ok = does_not_fit(t, "it has no column \"%s\"", table->cols[i].name);
		else
		{
			*altered = true;
			if (!add)
				continue;
			alter = prepare(t, psprintf("ALTER TABLE %s ADD COLUMN %s %s", table_sql(table),
									  target_quote_ident(table->cols[i].name),
									  declared_type(table->cols[i].kind)));
			ok = alter && finish(t, alter);
		}
	}
	return ok;
}

/*
 * SQLite numbers no tables.  Ours carry a trigger that never does anything and
 * goes away with the table: it is seen by its name, which is random, that the
 * table is the one that it was.  Whatever updates the key alone looks at it at all.
 */
static bool
mark_table(SqliteTarget *t, const TargetTable *table, const char *file_name)
{
	sqlite3_stmt *stmt = prepare(t, "SELECT 1 FROM sqlite_master WHERE type = 'trigger'"
								 " AND tbl_name = ?1 AND name GLOB '" MARK_PREFIX "*'");
	uint64		number;
	int			rc;

	if (!stmt || !bind_server_text(t, stmt, 1, file_name))
	{
		sqlite3_finalize(stmt);
		return false;
	}
	rc = sqlite3_step(stmt);
	if (rc != SQLITE_ROW && rc != SQLITE_DONE)
		(void) fail(t, rc, false);
	sqlite3_finalize(stmt);
	if (rc != SQLITE_DONE)
		return rc == SQLITE_ROW;
	if (!pg_strong_random(&number, sizeof(number)))
		return fail_with(t, TARGET_FAILED, "random", "no random number can be had");
	stmt = prepare(t, psprintf("CREATE TRIGGER " MARK_PREFIX "%016llx BEFORE UPDATE OF %s ON %s WHEN 0 BEGIN"
							   " SELECT 'by this crate_sync knows the table again'; END",
							   (unsigned long long) number,
							   target_quote_ident(table->cols[table->keys[0]].name),
							   target_quote_ident(file_name)));
	return stmt && finish(t, stmt);
}

static bool
make_or_fit_table(SqliteTarget *t, const TargetTable *table, bool add, bool *created, bool *altered)
{
	char	   *file_name = file_name_of(table->schema, table->name);
	sqlite3_stmt *stmt;
	int			rc;
	bool		ok = true;

	/* names that differ in case alone are one name to SQLite */
	if (pg_strcasecmp(file_name, FENCE_TABLE) == 0)
		return does_not_fit(t, "the name %s is taken by crate_sync itself", file_name);
	if (!make_fence_table(t))
		return false;
	stmt = prepare(t, "SELECT type, name = ?1 FROM sqlite_master"
				   " WHERE name = ?1 COLLATE NOCASE AND type IN ('table', 'view')");
	if (!stmt || !bind_server_text(t, stmt, 1, file_name))
	{
		sqlite3_finalize(stmt);
		return false;
	}
	rc = sqlite3_step(stmt);
	if (rc == SQLITE_ROW)
	{
		const char *type = (const char *) sqlite3_column_text(stmt, 0);

		if (type == NULL || strcmp(type, "table") != 0)
			ok = does_not_fit(t, "%s is a view", file_name);
		else if (!sqlite3_column_int(stmt, 1))
			ok = does_not_fit(t, "there is a table whose name differs from %s in case alone, which SQLite cannot tell apart",
							  file_name);
	}
	else if (rc != SQLITE_DONE)
		ok = fail(t, rc, false);
	sqlite3_finalize(stmt);
	if (!ok)
		return false;

	if (rc == SQLITE_DONE)
	{
		*created = true;
		stmt = prepare(t, sqlite_ddl(table));
		return stmt && finish(t, stmt) && set_written(t, file_name, false) &&
			mark_table(t, table, file_name);
	}

	/* there: with rows of ours? */
	stmt = fence_statement(t, file_name, 0,
						   "SELECT max(written) FROM " FENCE_TABLE " WHERE table_name = ?1");
	if (!stmt)
		return false;
	rc = sqlite3_step(stmt);
	*created = rc != SQLITE_ROW || sqlite3_column_int(stmt, 0) == 0;
	sqlite3_finalize(stmt);
	return fit_table(t, table, file_name, add, altered) && mark_table(t, table, file_name);
}

static void
sqlite_ensure_table(Target *target, const TargetTable *table, bool add, bool *created, bool *altered,
					TargetResult *res)
{
	SqliteTarget *t = (SqliteTarget *) target;
	bool		ok;

	result_init(res);
	*created = *altered = false;
	ok = ready(t) && run(t, "BEGIN IMMEDIATE");
	if (ok)
		ok = end_transaction(t, make_or_fit_table(t, table, add, created, altered));
	if (!ok)
	{
		*created = *altered = false;
		result_fail(t, res);
	}
}

static void
sqlite_identify(Target *target, const TargetTable *const *tables, int n, char **ids,
				TargetResult *res)
{
	SqliteTarget *t = (SqliteTarget *) target;
	char	  **names = palloc(sizeof(char *) * n); /* UTF-8 */
	uint32	   *hashes = palloc0(sizeof(uint32) * n);	/* of the definition */
	sqlite3_stmt *stmt;
	int			rc = SQLITE_DONE;

	result_init(res);
	memset(ids, 0, sizeof(char *) * n);
	for (int i = 0; i < n; i++)
	{
		char	   *name = file_name_of(tables[i]->schema, tables[i]->name);

		names[i] = pg_server_to_any(name, strlen(name), PG_UTF8);
	}
	/* a table comes before its triggers */
	stmt = ready(t) ? prepare(t, "SELECT tbl_name, name, sql, type = 'table' FROM sqlite_master"
							  " WHERE type = 'table' OR type = 'trigger' AND name GLOB '" MARK_PREFIX "*'"
							  " ORDER BY type") : NULL;
	while (stmt != NULL && (rc = sqlite3_step(stmt)) == SQLITE_ROW)
	{
		const char *table = (const char *) sqlite3_column_text(stmt, 0);
		const char *name = (const char *) sqlite3_column_text(stmt, 1);
		const char *sql = (const char *) sqlite3_column_text(stmt, 2);

		for (int i = 0; i < n && table != NULL && name != NULL; i++)
		{
			if (strcmp(names[i], table) != 0)
				continue;
			if (sqlite3_column_int(stmt, 3) != 0)
				hashes[i] = sql ? hash_bytes((const unsigned char *) sql, strlen(sql)) : 0;
			else
				ids[i] = psprintf("%s %08x", target_clean_text(name, strlen(name)), hashes[i]);
		}
	}
	if (stmt != NULL && rc != SQLITE_DONE)
		(void) fail(t, rc, false);
	sqlite3_finalize(stmt);
	if (stmt == NULL || rc != SQLITE_DONE)
		result_fail(t, res);
}

static bool
drop(SqliteTarget *t, const char *schema, const char *name)
{
	sqlite3_stmt *stmt = prepare(t, psprintf("DROP TABLE IF EXISTS %s",
											 sqlite_sql_name(schema, name)));

	/* the epochs stay: they never go back */
	return stmt && finish(t, stmt) && make_fence_table(t) &&
		set_written(t, file_name_of(schema, name), false);
}

static void
sqlite_drop_table(Target *target, const char *schema, const char *name, TargetResult *res)
{
	SqliteTarget *t = (SqliteTarget *) target;
	bool		ok;

	result_init(res);
	ok = ready(t) && run(t, "BEGIN IMMEDIATE");
	if (ok)
		ok = end_transaction(t, drop(t, schema, name));
	if (!ok)
		result_fail(t, res);
}

static bool
swap(SqliteTarget *t, const TargetTable *as, const TargetTable *table)
{
	char	   *as_name = file_name_of(as->schema, as->name);
	char	   *name = file_name_of(table->schema, table->name);
	sqlite3_stmt *stmt;

	if (!drop(t, table->schema, table->name))
		return false;
	stmt = prepare(t, psprintf("ALTER TABLE %s RENAME TO %s", target_quote_ident(as_name),
							   target_quote_ident(name)));
	if (!stmt || !finish(t, stmt) || !set_written(t, as_name, false))
		return false;
	/* its rows are ours, although none of its lanes may have written them */
	stmt = fence_statement(t, name, 0,
						   "INSERT INTO " FENCE_TABLE " (table_name, lane, epoch) VALUES (?1, ?2, " NOW_MS ")"
						   " ON CONFLICT (table_name, lane) DO NOTHING");
	return stmt && finish(t, stmt) && set_written(t, name, true);
}

static void
sqlite_swap_table(Target *target, const TargetTable *as, const TargetTable *table,
				  TargetResult *res)
{
	SqliteTarget *t = (SqliteTarget *) target;
	bool		ok;

	result_init(res);
	ok = ready(t) && run(t, "BEGIN IMMEDIATE");
	if (ok)
		ok = end_transaction(t, swap(t, as, table));
	if (!ok)
		result_fail(t, res);
}

/* ---------------------------------------------------------------------------
 * Reading rows back
 * ------------------------------------------------------------------------ */

/* "SELECT columns FROM table"; palloc'd, appendable */
static StringInfo
select_sql(const TargetTable *table, const int *cols, int ncols)
{
	StringInfo	buf = makeStringInfo();

	appendStringInfoString(buf, "SELECT ");
	for (int i = 0; i < ncols; i++)
		appendStringInfo(buf, "%s%s", i ? ", " : "", value_sql(&table->cols[cols[i]]));
	appendStringInfo(buf, " FROM %s", table_sql(table));
	return buf;
}

static void
add_row(sqlite3_stmt *stmt, const TargetTable *table, const int *cols, int ncols, RowSet *out)
{
	for (int i = 0; i < ncols; i++)
	{
		const TargetColumn *col = &table->cols[cols[i]];

		if (!col->key || !append_foreign_key(rowset_cell(out, i), stmt, i, col->kind))
			append_value(rowset_cell(out, i), stmt, i, col->kind);
	}
	rowset_end_row(out);
}

static void
sqlite_page(Target *target, const TargetTable *table, const int *cols, int ncols,
			const RowSet *after, int limit, bool refresh, RowSet *out, TargetResult *res)
{
	SqliteTarget *t = (SqliteTarget *) target;
	StringInfo	buf;
	StringInfoData keylist;
	sqlite3_stmt *stmt = NULL;
	int			rc;
	bool		ok;

	result_init(res);
	if (!ready(t))
	{
		result_fail(t, res);
		return;
	}
	initStringInfo(&keylist);
	for (int i = 0; i < table->nkeys; i++)
		appendStringInfo(&keylist, "%s%s", i ? ", " : "",
						 target_quote_ident(table->cols[table->keys[i]].name));
	buf = select_sql(table, cols, ncols);
	if (after)
	{
		appendStringInfo(buf, " WHERE (%s) > (", keylist.data);
		for (int i = 0; i < table->nkeys; i++)
			appendStringInfo(buf, "%s?%d", i ? ", " : "", i + 1);
		appendStringInfoChar(buf, ')');
	}
	appendStringInfo(buf, " ORDER BY %s LIMIT %d", keylist.data, limit);

	stmt = prepare(t, buf->data);
	ok = stmt && (!after || bind_key(t, stmt, table, after, 0));
	if (ok)
	{
		while ((rc = sqlite3_step(stmt)) == SQLITE_ROW)
		{
			add_row(stmt, table, cols, ncols, out);
			res->rowcount++;
		}
		if (rc != SQLITE_DONE)
			ok = fail(t, rc, false);
	}
	sqlite3_finalize(stmt);
	if (!ok)
		result_fail(t, res);
}

static void
sqlite_fetch(Target *target, const TargetTable *table, const int *cols, int ncols,
			 const RowSet *keys, int lo, int hi, bool fresh, RowSet *out, TargetResult *res)
{
	SqliteTarget *t = (SqliteTarget *) target;
	StringInfo	buf;
	sqlite3_stmt *stmt;
	bool		ok;

	result_init(res);
	if (!ready(t))
	{
		result_fail(t, res);
		return;
	}
	buf = select_sql(table, cols, ncols);
	appendStringInfoString(buf, where_key(table));
	stmt = prepare(t, buf->data);
	ok = stmt != NULL;
	for (int row = lo; ok && row < hi; row++)
	{
		int			rc;

		if (keys->dead && keys->dead[row])
			continue;
		/* a key the column cannot hold is not there */
		if (!bind_key(t, stmt, table, keys, row))
			continue;
		rc = sqlite3_step(stmt);
		if (rc == SQLITE_ROW)
		{
			add_row(stmt, table, cols, ncols, out);
			res->rowcount++;
		}
		else if (rc != SQLITE_DONE)
			ok = fail(t, rc, false);
		sqlite3_reset(stmt);
	}
	sqlite3_finalize(stmt);
	if (!ok)
		result_fail(t, res);
}

static void
sqlite_refresh(Target *target, const TargetTable *table, TargetResult *res)
{
	/* what is committed is visible */
	result_init(res);
}

/* ---------------------------------------------------------------------------
 * The target
 * ------------------------------------------------------------------------ */

static bool
sqlite_takes(const char *conf, char **errmsg)
{
	const char *path = conf + strlen(SCHEME);

	if (pg_strncasecmp(conf, SCHEME, strlen(SCHEME)) != 0)
		return false;
	/* the server's working directory is its data directory: no place for it */
	if (path[0] != '/' || path[strlen(path) - 1] == '/')
	{
		*errmsg = pstrdup("\"sqlite:\" must be followed by a file's absolute path, as in sqlite:/var/lib/mirror.db");
		return false;
	}
	return true;
}

static Target *
sqlite_open(const char *conf)
{
	MemoryContext oldcxt = MemoryContextSwitchTo(TopMemoryContext);
	SqliteTarget *t = palloc0(sizeof(SqliteTarget));

	t->base.ops = &target_sqlite_ops;
	t->path = pstrdup(conf + strlen(SCHEME));
	initStringInfo(&t->scratch);
	MemoryContextSwitchTo(oldcxt);
	return &t->base;
}

static void
sqlite_close(Target *target)
{
	SqliteTarget *t = (SqliteTarget *) target;

	disconnect(t);
	pfree(t->scratch.data);
	pfree(t->path);
	pfree(t);
}

static void
sqlite_reconnect(Target *target)
{
	disconnect((SqliteTarget *) target);
}

const TargetOps target_sqlite_ops = {
	.name = "sqlite",
	.takes = sqlite_takes,
	.open = sqlite_open,
	.close = sqlite_close,
	.reconnect = sqlite_reconnect,
	.submit = sqlite_submit,
	.poll = sqlite_poll,
	.abandon = sqlite_abandon,
	.statement = sqlite_statement,
	.check = sqlite_check,
	.ensure_table = sqlite_ensure_table,
	.identify = sqlite_identify,
	.drop_table = sqlite_drop_table,
	.swap_table = sqlite_swap_table,
	.raise_fence = sqlite_raise_fence,
	.count_lanes = sqlite_count_lanes,
	.drop_fence = sqlite_drop_fence,
	.read_fence = sqlite_read_fence,
	.page = sqlite_page,
	.fetch = sqlite_fetch,
	.refresh = sqlite_refresh,
	.ddl = sqlite_ddl,
	.sql_name = sqlite_sql_name
};
