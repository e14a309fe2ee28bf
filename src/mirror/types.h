/*-------------------------------------------------------------------------
 *
 * types.h
 *		PostgreSQL types, what they become in the target, and their encoders.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_TYPES_H
#define CRATE_SYNC_TYPES_H

#include "base/base.h"
#include "target/target.h"

typedef struct CellEncoder CellEncoder;

/* appends the JSON of a non-NULL value; may ereport, leaving a partial cell */
typedef void (*CellEncodeFunc) (StringInfo buf, Datum value, CellEncoder *enc);

struct CellEncoder
{
	CellEncodeFunc encode;
	Oid			typid;			/* base type: domains are looked through */
	FmgrInfo	out;			/* output function, where encode needs one */
	CellEncoder *elem;			/* arrays: of the element */
	int16		elem_len;
	bool		elem_byval;
	char		elem_align;
	struct RecordEncoder *record;	/* of a document's nodes */
};

typedef struct TypeMapping
{
	char	   *type;			/* CrateDB's, palloc'd */
	char	   *storage;		/* or NULL */
	CellKind	kind;
	char	   *loses;			/* one sentence for preview, or NULL */
} TypeMapping;

/*
 * What a column becomes.  as_key: a mapping that is not one to one is
 * refused or becomes text.  override: a target type that the user chose
 * (options.types), or NULL.  Errors: ereport, naming colname and the type.
 */
extern void types_map(const char *colname, Oid typid, int32 typmod, bool as_key,
					  const char *override, TypeMapping *map);

/*
 * The encoder for a column mapped so.  Lives in the current memory context.
 * Encoders do not depend on TimeZone, DateStyle, extra_float_digits,
 * IntervalStyle or bytea_output: where an output function does, the caller
 * has pinned them (reader.c).
 */
extern void types_encoder(Oid typid, int32 typmod, const TypeMapping *map, CellEncoder *enc);

/* the encoder for arrays whose elements, of that type, are written by elem */
extern void types_array_encoder(Oid elemtype, CellEncoder *elem, CellEncoder *enc);

#endif							/* CRATE_SYNC_TYPES_H */
