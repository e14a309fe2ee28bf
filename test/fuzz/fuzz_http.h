/*
 * Put before the files of CrateDB's target: their network is the harness's
 * (fuzz_http.c), while http.c is there for its settings.
 */
#define http_open fuzz_http_open
#define http_close fuzz_http_close
#define http_reconnect fuzz_http_reconnect
#define http_conn fuzz_http_conn
#define http_start fuzz_http_start
#define http_cancel fuzz_http_cancel
#define http_wait fuzz_http_wait
#define http_next_done fuzz_http_next_done
#define http_blame_host fuzz_http_blame_host
#define http_trim fuzz_http_trim
