/*-------------------------------------------------------------------------
 *
 * crate.c
 *		CrateDB as a target: opened, looked at, and all that it can.
 *
 *-------------------------------------------------------------------------
 */
#include "target/crate/crate.h"

#include "base/text.h"

#define MIN_VERSION			40200	/* INSERT ... RETURNING */

/* "6.4.3..." as 60403; 0 if it is none */
static int
version_number(const char *text)
{
	int			major;
	int			minor;
	int			patch = 0;

	if (sscanf(text, "%d.%d.%d", &major, &minor, &patch) < 2)
		return 0;
	if (major < 0 || major > 999 || minor < 0 || minor > 99 || patch < 0)
		return 0;
	return major * 10000 + minor * 100 + Min(patch, 99);
}

static void
crate_check(Target *target, TargetInfo *info, TargetResult *res)
{
	CrateTarget *t = (CrateTarget *) target;
	MemoryContext caller = sync_enter(t);
	char	   *text = NULL;

	memset(info, 0, sizeof(*info));
	/* asks for no right at all, unlike the sys tables */
	sync_query(t, "SELECT version()", NULL, res);
	if (res->outcome == TARGET_OK && res->nrows == 1 && res->ncols == 1)
		text = sync_cell_text(res->cells[0][0]);

	if (text != NULL && strncmp(text, "CrateDB ", 8) == 0)
	{
		strlcpy(info->product, "CrateDB", sizeof(info->product));
		strlcpy(info->version, target_clean_text(text + 8, strcspn(text + 8, " ")),
				sizeof(info->version));
		info->version_num = version_number(info->version);
		if (info->version_num < MIN_VERSION)
			target_result_error(res, TARGET_REFUSED_ALL, "version",
								"CrateDB %s is too old: 4.2 or later is needed", info->version);
		else
			sync_learn_hosts(t);
	}
	else if (res->outcome == TARGET_OK)
		target_result_error(res, TARGET_REFUSED_ALL, "product", "the target is not a CrateDB");
	else if (res->outcome == TARGET_UNKNOWN)
	{
		/* it was a question: it has changed nothing, whatever became of it */
		if (t->sync->fate == HTTP_ANSWERED && strcmp(res->code, "shutdown") != 0)
		{
			res->outcome = t->sync->status >= 500 ? TARGET_UNREACHABLE : TARGET_REFUSED_ALL;
			res->message = psprintf("the target is not a CrateDB, or something stands before it: %s",
									res->message);
		}
		else
			res->outcome = TARGET_UNREACHABLE;
	}
	else if (res->outcome == TARGET_REFUSED_ROWS || res->outcome == TARGET_REFUSED_TABLE ||
			 res->outcome == TARGET_TOO_BIG)
		res->outcome = TARGET_REFUSED_ALL;
	else if (res->outcome == TARGET_FAILED)
		res->outcome = TARGET_UNREACHABLE;
	res->ncols = res->nrows = 0;
	res->cells = NULL;
	res->colnames = NULL;
	sync_leave(t, caller, res);
}

static Target *
crate_open(const char *conf)
{
	MemoryContext cxt = AllocSetContextCreate(TopMemoryContext, "crate_sync target",
											  ALLOCSET_DEFAULT_SIZES);
	CrateTarget *t;

	PG_TRY();
	{
		t = MemoryContextAllocZero(cxt, sizeof(CrateTarget));
		t->base.ops = &target_crate_ops;
		t->cxt = cxt;
		t->work = AllocSetContextCreate(cxt, "crate_sync write", ALLOCSET_DEFAULT_SIZES);
		t->sync_work = AllocSetContextCreate(cxt, "crate_sync call", ALLOCSET_DEFAULT_SIZES);
		t->pool = http_open(conf, cxt);
		t->sync = http_conn(t->pool);
		t->sync->same_host = true;
	}
	PG_CATCH();
	{
		MemoryContextDelete(cxt);
		PG_RE_THROW();
	}
	PG_END_TRY();
	return &t->base;
}

static void
crate_close(Target *target)
{
	CrateTarget *t = (CrateTarget *) target;

	http_close(t->pool);
	MemoryContextDelete(t->cxt);
}

static void
crate_reconnect(Target *target)
{
	http_reconnect(((CrateTarget *) target)->pool);
}

const TargetOps target_crate_ops = {
	.name = "crate",
	.takes = http_conf_check,
	.open = crate_open,
	.close = crate_close,
	.reconnect = crate_reconnect,
	.submit = crate_submit,
	.poll = crate_poll,
	.came_back = crate_came_back,
	.abandon = crate_abandon,
	.delete_life = crate_delete_life,
	.statement = crate_statement,
	.check = crate_check,
	.ensure_table = crate_ensure_table,
	.identify = crate_identify,
	.reachable = crate_reachable,
	.drop_table = crate_drop_table,
	.swap_table = crate_swap_table,
	.raise_fence = crate_raise_fence,
	.count_lanes = crate_count_lanes,
	.drop_fence = crate_drop_fence,
	.read_fence = crate_read_fence,
	.page = crate_page,
	.fetch = crate_fetch,
	.refresh = crate_refresh,
	.ddl = crate_ddl
};
