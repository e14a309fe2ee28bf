/*-------------------------------------------------------------------------
 *
 * base.h
 *		What every room shares: the server's headers, settings, small helpers.
 *
 * Where what is, and the way of a change: src/README.md.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_H
#define CRATE_SYNC_H

#include "postgres.h"

#include "fmgr.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "base/compat.h"

#define CS_SCHEMA			"crate_sync"
#define CS_TRIGGER			"crate_sync_capture"
#define CS_TRUNCATE_TRIGGER "crate_sync_capture_truncate"
/* and those of documents begin so */
#define CS_LINK_TRIGGER		"crate_sync_link_"

#endif							/* CRATE_SYNC_H */
