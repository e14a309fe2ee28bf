/*-------------------------------------------------------------------------
 *
 * session.c
 *		Acting as the extension, after the caller's right was checked; and as
 *		a table's owner, where code of his may run.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "base/session.h"
#include "catalog/pg_authid.h"
#include "mirror/mirror.h"
#include "utils/guc.h"

void
elevate(Elevation *e)
{
	GetUserIdAndSecContext(&e->userid, &e->sec_context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID,
						   e->sec_context | SECURITY_LOCAL_USERID_CHANGE);
	e->guc_level = mirror_fixed_settings();
}

void
descend(const Elevation *e)
{
	AtEOXact_GUC(true, e->guc_level);
	SetUserIdAndSecContext(e->userid, e->sec_context);
}

void
become_owner(Elevation *e, Oid owner)
{
	GetUserIdAndSecContext(&e->userid, &e->sec_context);
	SetUserIdAndSecContext(owner, e->sec_context | SECURITY_RESTRICTED_OPERATION);
	e->guc_level = NewGUCNestLevel();
}

void
be_oneself(const Elevation *e)
{
	AtEOXact_GUC(false, e->guc_level);
	SetUserIdAndSecContext(e->userid, e->sec_context);
}
