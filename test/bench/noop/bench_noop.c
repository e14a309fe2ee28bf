/*-------------------------------------------------------------------------
 *
 * bench_noop.c
 *		An AFTER ROW trigger that does nothing.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(bench_noop);

Datum
bench_noop(PG_FUNCTION_ARGS)
{
	return PointerGetDatum(NULL);
}
