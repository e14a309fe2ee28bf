/*-------------------------------------------------------------------------
 *
 * point.c
 *		Places where tests hold the worker.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "base/point.h"
#include "common/hashfn.h"
#include "pgstat.h"
#include "storage/lock.h"
#include "utils/backend_status.h"

/* inside a transaction or outside of it; throws nothing but what interrupts do */
void
point_hold(const char *name)
{
	LOCKTAG		tag;
	bool		said = false;

	/* as pg_advisory_lock(int4, int4) has it, with hashtext() of the name */
	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, CS_POINT_LOCKS,
						 DatumGetUInt32(hash_any((const unsigned char *) name, strlen(name))), 2);
	while (LockAcquire(&tag, ShareLock, true, true) == LOCKACQUIRE_NOT_AVAIL)
	{
		if (!said)
			pgstat_report_activity(STATE_RUNNING, psprintf("held at %s", name));
		said = true;
		CHECK_FOR_INTERRUPTS();
		pg_usleep(1000L);
	}
	LockRelease(&tag, ShareLock, true);
	if (said)
		pgstat_report_activity(STATE_IDLE, NULL);
}
