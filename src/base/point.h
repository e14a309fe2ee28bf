/*-------------------------------------------------------------------------
 *
 * point.h
 *		Places where tests hold the worker.
 *
 * What goes wrong between two steps of the worker is found by stopping it
 * there, not by luck.  With crate_sync.debug_points on, cs_point("name") waits
 * as long as somebody holds the advisory lock of that name:
 *
 *		SELECT pg_advisory_lock(28531, hashtext('name'));
 *
 * and pg_stat_activity says so meanwhile ("held at name").  Off, it is a test
 * of a variable.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_POINT_H
#define CRATE_SYNC_POINT_H

#include "base/base.h"
#include "base/settings.h"

/* the first key of the advisory locks */
#define CS_POINT_LOCKS 28531

extern void point_hold(const char *name);

static inline void
cs_point(const char *name)
{
	if (unlikely(cs_debug_points))
		point_hold(name);
}

#endif							/* CRATE_SYNC_POINT_H */
