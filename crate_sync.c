/*-------------------------------------------------------------------------
 *
 * crate_sync.c
 *		Module entry: hooks, shared memory, the launcher; what the target may be.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "base/settings.h"
#include "capture/capture.h"
#include "capture/early.h"
#include "functions/tables.h"
#include "shared/live.h"
#include "shared/wake.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "target/target.h"
#include "utils/guc.h"

PG_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);

#if PG_VERSION_NUM >= 150000
static shmem_request_hook_type prev_shmem_request_hook = NULL;
#endif

static bool
check_target(char **newval, void **extra, GucSource source)
{
	char	   *why = NULL;

	/* the worker would go on elsewhere, and whoever did that believe it does not */
	if (source == PGC_S_SESSION)
	{
		GUC_check_errcode(ERRCODE_CANT_CHANGE_RUNTIME_PARAM);
		GUC_check_errmsg("parameter \"crate_sync.target\" cannot be changed for a session");
		GUC_check_errdetail("It is where the worker pushes.");
		GUC_check_errhint("ALTER SYSTEM SET or ALTER DATABASE ... SET changes it; connect again after the latter.");
		return false;
	}
	if (*newval == NULL || (*newval)[0] == '\0')
		return true;
	if (target_ops_for(*newval, &why) != NULL)
		return true;
	GUC_check_errdetail("%s", why ? why : "It names no target.");
	GUC_check_errhint("Use http://host:4200, several of them separated by commas, https://..., or sqlite:/path/file.db.");
	return false;
}

static void
request_memory(void)
{
#if PG_VERSION_NUM >= 150000
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
#endif
	RequestAddinShmemSpace(live_size());
}

void
_PG_init(void)
{
	cs_preloaded = process_shared_preload_libraries_in_progress;
	target_register(&target_sqlite_ops);
	target_register(&target_crate_ops);
	settings_define(check_target);
	wake_init();
	capture_init();
	early_init();
	tables_init();

	if (!cs_preloaded)
		return;
#if PG_VERSION_NUM >= 150000
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = request_memory;
#else
	request_memory();
#endif
	if (!IsBinaryUpgrade)
		cs_register_launcher();
}
