/*-------------------------------------------------------------------------
 *
 * elevate.h
 *		Acting as the extension, after the caller's right was checked.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_ELEVATE_H
#define CRATE_SYNC_ELEVATE_H

#include "crate_sync.h"

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

#endif							/* CRATE_SYNC_ELEVATE_H */
