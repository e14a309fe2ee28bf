/*-------------------------------------------------------------------------
 *
 * session.h
 *		Acting as the extension, after the caller's right was checked; and as
 *		a table's owner, where code of his may run.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_SESSION_H
#define CRATE_SYNC_SESSION_H

#include "base/base.h"

typedef struct Elevation
{
	Oid			userid;
	int			sec_context;
	int			guc_level;
} Elevation;

/*
 * Between the two, the catalog may be read and written, with search_path and
 * output settings pinned.  An error in between is undone by the abort of the
 * (sub)transaction.
 */
extern void elevate(Elevation *e);
extern void descend(const Elevation *e);

/*
 * Between the two, code of a table's owner may run: as that owner, in a
 * restricted operation; whatever settings it changes are as before at the
 * end, or search_path would be its to choose for what we run later.  Errors
 * as above.
 */
extern void become_owner(Elevation *e, Oid owner);
extern void be_oneself(const Elevation *e);

/* pins search_path and output settings; returns the level for AtEOXact_GUC */
extern int	mirror_fixed_settings(void);

/* the timeline this server writes */
extern uint32 worker_timeline(void);

/* nothing that is set for everybody is meant for our background processes */
extern void worker_pin_settings(void);

#endif							/* CRATE_SYNC_SESSION_H */
