/*-------------------------------------------------------------------------
 *
 * fuzz.h
 *		What the harnesses share.
 *
 * They are one module that is loaded into a single-user server: the code
 * under test is the extension's own, with crate.c talking to
 * fuzz_http.c instead of to a network.  Each input runs in a subtransaction
 * and a memory context of its own, which are thrown away afterwards.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_FUZZ_H
#define CRATE_SYNC_FUZZ_H

#include "base/base.h"

typedef struct FuzzHarness
{
	const char *name;
	void		(*init) (void); /* in TopMemoryContext; or NULL */
	void		(*one) (const char *data, int len);
	bool		may_throw;		/* an error is an answer; else it is a failure */
	bool		json;			/* inputs are JSON, more or less: change whole values, too */
} FuzzHarness;

extern const FuzzHarness fuzz_answer;
extern const FuzzHarness fuzz_request;
extern const FuzzHarness fuzz_encode;
extern const FuzzHarness fuzz_key;
extern const FuzzHarness fuzz_setting;
extern const FuzzHarness fuzz_options;
extern const FuzzHarness fuzz_verify;

/* separates the parts of an input */
#define FUZZ_SEP '\x1e'

/* says why, and dies so that the input is kept */
pg_attribute_noreturn() extern void fuzz_fail(const char *fmt,...) pg_attribute_printf(1, 2);

/* from here on an error is a failure, whatever may_throw says */
extern void fuzz_must_not_throw(void);

/*
 * A copy in memory of exactly that size, so that reading past its end is
 * noticed; freed after the input.
 */
extern void *fuzz_exact(const void *data, int len);

/* the input's next part, ending at FUZZ_SEP, as a copy with a NUL behind it */
extern char *fuzz_part(const char **p, const char *end, int *len);

/* is that valid in this encoding, and without a NUL? */
extern bool fuzz_valid(int encoding, const char *text, int len);

/* one JSON value in UTF-8, and nothing else? */
extern bool fuzz_is_json(const char *json, int len);
extern void fuzz_check_json(const char *what, const char *json, int len);

/* what a JSON string with its quotes says, read by code of the harness; palloc'd */
extern char *fuzz_json_decode(const char *json, int len, int *outlen);

/* one line, bounded, printable, in the database's encoding */
extern void fuzz_check_message(const char *message);

/*
 * That nothing of what users name has become a part of SQL: identifiers and
 * literals of sql have to be among the texts given (NULL: anything), and what
 * is outside of them of a harmless alphabet.
 */
extern void fuzz_check_sql(const char *sql, char **idents, int nidents,
						   char **literals, int nliterals);

/* fuzz_http.c: what the target will answer to the next requests */
extern void fuzz_http_answers(const char *p, const char *end);

/* called with each request's body; or NULL */
extern void (*fuzz_http_request) (const char *body, int len);

/* called for an answer where there is none left; or NULL: the connection is lost */
extern const char *(*fuzz_http_reply) (const char *body, int len);

#endif							/* CRATE_SYNC_FUZZ_H */
