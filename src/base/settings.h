/*-------------------------------------------------------------------------
 *
 * settings.h
 *		All settings.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_SETTINGS_H
#define CRATE_SYNC_SETTINGS_H

#include "base/base.h"
#include "utils/guc.h"

typedef enum QueueFullAction
{
	QUEUE_FULL_WARN,
	QUEUE_FULL_DETACH
} QueueFullAction;

/* times in ms, sizes in kB unless said otherwise */
extern char *cs_target;
extern char *cs_user;
extern char *cs_password_file;
extern char *cs_ssl_ca_file;
extern char *cs_ssl_cert_file;
extern char *cs_ssl_key_file;
extern bool cs_ssl_verify;
extern bool cs_target_discovery;
extern int	cs_interval;
extern bool cs_sync_on_commit;
extern int	cs_batch_rows;
extern int	cs_batch_bytes;			/* kB */
extern int	cs_connections;
extern int	cs_work_mem;			/* kB */
extern int	cs_connect_timeout;
extern int	cs_request_timeout;
extern int	cs_max_retry_interval;
extern int	cs_log_min_duration;
extern bool cs_enabled;
extern int	cs_max_lag;
extern int	cs_max_queue_size;		/* MB */
extern int	cs_history_retention;	/* min */
extern int	cs_queue_full_action;
extern bool cs_capture;
extern bool cs_debug_points;		/* see point.h */
extern int	cs_debug_read_limit;	/* see bounded.c */
extern bool cs_debug_new_links_only;	/* see capture_link() */

extern bool cs_preloaded;			/* loaded by shared_preload_libraries */

/* at load; check_target judges values of crate_sync.target */
extern void settings_define(GucStringCheckHook check_target);

#endif							/* CRATE_SYNC_SETTINGS_H */
