/*-------------------------------------------------------------------------
 *
 * text.h
 *		Quoting, JSON strings, safe messages.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_TEXT_H
#define CRATE_SYNC_TEXT_H

#include "base/base.h"

extern char *target_quote_ident(const char *name);	/* "na""me" */
/* untrusted text made safe for a message: bounded, one line, valid encoding; palloc'd */
extern char *target_clean_text(const char *text, int len);

/*
 * Appends text as a JSON string with its quotes; text need not end in NUL.
 * types_json_string: text is in the database's encoding; types_json_utf8: it
 * is UTF-8 already.
 */
extern void types_json_string(StringInfo buf, const char *text, int len);
extern void types_json_utf8(StringInfo buf, const char *text, int len);

/* a double as encoders write it: 1.0, 1e+300, "NaN" */
extern void types_json_float8(StringInfo buf, double v);
/* its shortest digits, made a number that is not an integer */
extern void json_float_digits(StringInfo buf, char *digits, int len);

#endif							/* CRATE_SYNC_TEXT_H */
