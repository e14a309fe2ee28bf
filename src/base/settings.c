/*-------------------------------------------------------------------------
 *
 * settings.c
 *		All settings.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include <limits.h>

#include "base/settings.h"

char	   *cs_target = NULL;
char	   *cs_user = NULL;
char	   *cs_password_file = NULL;
char	   *cs_ssl_ca_file = NULL;
char	   *cs_ssl_cert_file = NULL;
char	   *cs_ssl_key_file = NULL;
bool		cs_ssl_verify = true;
bool		cs_target_discovery = false;
int			cs_interval = 1000;
bool		cs_sync_on_commit = true;
int			cs_batch_rows = 5000;
int			cs_batch_bytes = 8192;
int			cs_connections = 2;
int			cs_work_mem = 32768;
int			cs_connect_timeout = 10000;
int			cs_request_timeout = 60000;
int			cs_max_retry_interval = 60000;
int			cs_log_min_duration = -1;
bool		cs_enabled = true;
int			cs_max_lag = 300000;
int			cs_max_queue_size = 10240;
int			cs_history_retention;
int			cs_queue_full_action = QUEUE_FULL_WARN;
bool		cs_capture = true;
bool		cs_debug_points = false;
int			cs_debug_read_limit = 4000;
bool		cs_debug_new_links_only = false;
bool		cs_preloaded = false;

static const struct config_enum_entry queue_full_actions[] = {
	{"warn", QUEUE_FULL_WARN, false},
	{"detach_and_resync", QUEUE_FULL_DETACH, false},
	{NULL, 0, false}
};

void
settings_define(GucStringCheckHook check_target)
{
	DefineCustomStringVariable("crate_sync.target",
							   "Where mirrored tables go: http://host:4200[,...], https://..., or sqlite:/path/file.db.",
							   NULL, &cs_target, "", PGC_SUSET, 0,
							   check_target, NULL, NULL);
	DefineCustomStringVariable("crate_sync.user", "User at the target.", NULL,
							   &cs_user, "", PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("crate_sync.password_file",
							   "File that holds the user's password, readable by the server's owner only.", NULL,
							   &cs_password_file, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY, NULL, NULL, NULL);
	DefineCustomStringVariable("crate_sync.ssl_ca_file",
							   "Certificates that the target's one must be signed by; empty: the system's.", NULL,
							   &cs_ssl_ca_file, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY, NULL, NULL, NULL);
	DefineCustomStringVariable("crate_sync.ssl_cert_file", "Client certificate for the target.", NULL,
							   &cs_ssl_cert_file, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY, NULL, NULL, NULL);
	DefineCustomStringVariable("crate_sync.ssl_key_file", "Key of the client certificate.", NULL,
							   &cs_ssl_key_file, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY, NULL, NULL, NULL);
	DefineCustomBoolVariable("crate_sync.ssl_verify",
							 "Check the target's certificate and its name.", NULL,
							 &cs_ssl_verify, true, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomBoolVariable("crate_sync.target_discovery",
							 "Use all hosts that the target's cluster names, beside those of crate_sync.target.",
							 "They must be reachable from here under the addresses that they publish.",
							 &cs_target_discovery, false, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("crate_sync.interval",
							"The longest a committed change waits for a drain.", NULL,
							&cs_interval, 1000, 10, 3600000, PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomBoolVariable("crate_sync.sync_on_commit",
							 "Drain at once after a commit; off: only at crate_sync.interval.", NULL,
							 &cs_sync_on_commit, true, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("crate_sync.batch_rows", "Rows in a request, at most.", NULL,
							&cs_batch_rows, 5000, 1, 100000, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("crate_sync.batch_bytes", "Size of a request, about, beyond its first row.", NULL,
							&cs_batch_bytes, 8192, 64, 65536, PGC_SIGHUP, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("crate_sync.connections", "Connections to the target, requests in flight.", NULL,
							&cs_connections, 2, 1, 32, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("crate_sync.work_mem", "Memory for rows on their way, beyond one row.", NULL,
							&cs_work_mem, 32768, 16384, 2097152, PGC_SIGHUP, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("crate_sync.connect_timeout", "The longest a connection may take to be made.", NULL,
							&cs_connect_timeout, 10000, 10, 3600000, PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("crate_sync.request_timeout", "The longest a request may take.", NULL,
							&cs_request_timeout, 60000, 100, 3600000, PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("crate_sync.max_retry_interval", "The longest pause between two tries.", NULL,
							&cs_max_retry_interval, 60000, 100, 3600000, PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("crate_sync.log_min_duration",
							"Log requests that take this long; 0: all, -1: none.", NULL,
							&cs_log_min_duration, -1, -1, INT_MAX, PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomBoolVariable("crate_sync.enabled", "Push changes; off: they only queue.", NULL,
							 &cs_enabled, true, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("crate_sync.max_lag", "The lag from which status is not ok; 0: never.", NULL,
							&cs_max_lag, 300000, 0, INT_MAX, PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("crate_sync.max_queue_size",
							"The size of the queue on disk from which queue_full_action is taken.", NULL,
							&cs_max_queue_size, 10240, 1, INT_MAX, PGC_SIGHUP, GUC_UNIT_MB, NULL, NULL, NULL);
	DefineCustomEnumVariable("crate_sync.queue_full_action",
							 "What is done when the queue is full: warn, or detach_and_resync.",
							 "The latter has the table that fills it most stop queueing, and loads it anew when the target is back.",
							 &cs_queue_full_action, QUEUE_FULL_WARN, queue_full_actions, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("crate_sync.history_retention",
							"How long crate_sync.history and crate_sync.verifications go back; 0: no history.", NULL,
							&cs_history_retention, 30 * 24 * 60, 0, INT_MAX, PGC_SIGHUP, GUC_UNIT_MIN, NULL, NULL, NULL);
	DefineCustomBoolVariable("crate_sync.capture",
							 "Queue this session's changes; a superuser may skip that on purpose.",
							 "What is changed while it is off does not reach the target.",
							 &cs_capture, true, PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomBoolVariable("crate_sync.debug_points", "Let tests hold the worker between its steps.", NULL,
							 &cs_debug_points, false, PGC_SIGHUP,
							 GUC_NOT_IN_SAMPLE | GUC_NO_SHOW_ALL | GUC_SUPERUSER_ONLY, NULL, NULL, NULL);
	DefineCustomIntVariable("crate_sync.debug_read_limit",
							"The time after which a read is cancelled; others follow it.", NULL,
							&cs_debug_read_limit, 4000, 40, 60000, PGC_SIGHUP,
							GUC_UNIT_MS | GUC_NOT_IN_SAMPLE | GUC_NO_SHOW_ALL | GUC_SUPERUSER_ONLY, NULL, NULL, NULL);
	DefineCustomBoolVariable("crate_sync.debug_new_links_only",
							 "Break documents: leave out what rows were linked to before.", NULL,
							 &cs_debug_new_links_only, false, PGC_SUSET,
							 GUC_NOT_IN_SAMPLE | GUC_NO_SHOW_ALL | GUC_SUPERUSER_ONLY, NULL, NULL, NULL);
	MarkGUCPrefixReserved("crate_sync");
}
