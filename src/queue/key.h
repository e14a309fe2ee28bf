/*-------------------------------------------------------------------------
 *
 * key.h
 *		Packed keys: how the queue's chunks hold them.
 *
 * A chunk is a run of keys.  A key is its columns one after the other:
 *	 by-value types		the difference to the same column of the key before
 *						(0 before the first), zigzag, as a varint
 *	 fixed length		the bytes
 *	 varlena			the length as a varint, then the bytes, detoasted
 *
 * A key that is too long for that has a chunk of its own, KEY_LONG: the length
 * of the packed key as a varint, then that, as pglz compresses it.  An index
 * takes no key that would not become short enough.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_KEY_H
#define CRATE_SYNC_KEY_H

#include "base/base.h"
#include "access/tupdesc.h"

/* the most a chunk's keys take, so that its tuple fits a page: see queue_insert() */
#define KEY_CHUNK_BYTES Min(8000, BLCKSZ - 192)

/* the most that a packed key takes before it is compressed */
#define KEY_LONG_BYTES (1024 * 1024)

/* values of a chunk's n that are not a number of keys */
#define KEY_TRUNCATE (-1)		/* the table was truncated */
#define KEY_UNKNOWN	 (-2)		/* a key could not be packed: look at all rows */
#define KEY_LONG	 (-3)		/* one key, compressed */

typedef struct KeyColumn
{
	AttrNumber	attnum;
	Oid			typid;
	int16		len;
	bool		byval;
} KeyColumn;

/*
 * The layout of a table's packed keys.  id is a hash of the columns' names
 * and types, so that a chunk packed before an ALTER TABLE is recognised.
 */
typedef struct KeyLayout
{
	int32		id;
	bool		link;			/* no key, but what links rows to others: see document.h */
	int			ncols;
	KeyColumn	cols[INDEX_MAX_KEYS];
} KeyLayout;

/* false if a column is missing, dropped or of a type that cannot be packed */
extern bool key_layout(TupleDesc desc, int ncols, char **colnames, KeyLayout *layout);

/* a run of keys being packed or read */
typedef struct KeyRun
{
	const KeyLayout *layout;
	int64		last[INDEX_MAX_KEYS];
	bool		broken;			/* what was read is no run of keys */
} KeyRun;

extern void key_run_start(KeyRun *run, const KeyLayout *layout);

/*
 * Appends a key to buf.  Returns false, buf unchanged, if it would then be
 * longer than KEY_CHUNK_BYTES.
 */
extern bool key_pack(KeyRun *run, StringInfo buf, const Datum *values);

/*
 * Reads the next key of a run: values by reference are palloc'd.  Moves *p
 * on; returns false at the end, and at garbage: then run->broken is set.
 */
extern bool key_unpack(KeyRun *run, const char **p, const char *end, Datum *values);

/*
 * Packs one key alone into buf, which is empty: up to KEY_LONG_BYTES, beyond
 * which it returns false, buf unchanged.
 */
extern bool key_pack_alone(const KeyLayout *layout, StringInfo buf, const Datum *values);

/*
 * A chunk of a key that was packed alone: returns its n, and sets keys and len
 * to what it holds, palloc'd if n is KEY_LONG.  KEY_UNKNOWN if there is none:
 * packed is empty, or too long.
 */
extern int	key_chunk(const char *packed, int packed_len, const char **keys, int *len);

/*
 * The packed keys of a chunk, from *p to *end; palloc'd if they are not in the
 * chunk as they are.  Returns false at garbage.
 */
extern bool key_chunk_read(int n, const char *keys, int len, const char **p, const char **end);

/* a value that is passed by value, as a number and back; len: the type's */
static inline int64
key_to_number(Datum value, int16 len)
{
	switch (len)
	{
		case 1:
			return (int64) (int8) DatumGetChar(value);
		case 2:
			return (int64) DatumGetInt16(value);
		case 4:
			return (int64) DatumGetInt32(value);
		default:
			return DatumGetInt64(value);
	}
}

static inline Datum
key_from_number(int64 value, int16 len)
{
	switch (len)
	{
		case 1:
			return CharGetDatum((char) value);
		case 2:
			return Int16GetDatum((int16) value);
		case 4:
			return Int32GetDatum((int32) value);
		default:
			return Int64GetDatum(value);
	}
}

#endif							/* CRATE_SYNC_KEY_H */
