/*-------------------------------------------------------------------------
 *
 * xact.c
 *		Transactions and statements: frames, errors caught, pauses.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "base/bounded.h"
#include "base/settings.h"
#include "base/xact.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#if PG_VERSION_NUM >= 150000
#include "common/pg_prng.h"
#define random_fraction() pg_prng_double(&pg_global_prng_state)
#else
#define random_fraction() ((double) random() / ((double) MAX_RANDOM_VALUE + 1))
#endif

TimestampTz
backoff(int attempts)
{
	double		ms = 100.0;

	/* doubling, from 100 ms; jittered so that many do not come back at once */
	for (int i = 1; i < attempts && ms < cs_max_retry_interval; i++)
		ms *= 2;
	ms = Min(ms, (double) cs_max_retry_interval);
	ms *= 0.75 + 0.5 * random_fraction();
	return TimestampTzPlusMilliseconds(GetCurrentTimestamp(), (int64) ms);
}

ErrorData *
worker_catch(MemoryContext cxt)
{
	ErrorData  *error;

	MemoryContextSwitchTo(cxt);
	error = CopyErrorData();
	FlushErrorState();
	bounded_end();
	AbortCurrentTransaction();
	return error;
}

uint64
run_sql(const char *sql, int nargs, Oid *types, Datum *values, const char *nulls)
{
	int			rc = SPI_execute_with_args(sql, nargs, types, values, nulls, false, 0);

	if (rc < 0)
		elog(ERROR, "%s failed: %s", sql, SPI_result_code_string(rc));
	return SPI_processed;
}

void
run_utility(const char *sql)
{
	int			rc = SPI_execute(sql, false, 0);

	if (rc < 0)
		elog(ERROR, "%s failed: %s", sql, SPI_result_code_string(rc));
}

char *
qualified_name(Oid relid)
{
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
									  get_rel_name(relid));
}
