/*-------------------------------------------------------------------------
 *
 * key.c
 *		Packing keys into chunks and reading them back.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "common/hashfn.h"
#include "common/pg_lzcompress.h"
#include "queue/key.h"
#include "utils/lsyscache.h"

#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

bool
key_layout(TupleDesc desc, int ncols, char **colnames, KeyLayout *layout)
{
	uint32		hash = 0;

	memset(layout, 0, sizeof(KeyLayout));
	if (ncols < 1 || ncols > INDEX_MAX_KEYS)
		return false;

	for (int i = 0; i < ncols; i++)
	{
		KeyColumn  *col = &layout->cols[i];

		for (int a = 0; a < desc->natts; a++)
		{
			Form_pg_attribute att = TupleDescAttr(desc, a);

			if (att->attisdropped || strcmp(NameStr(att->attname), colnames[i]) != 0)
				continue;
			col->attnum = att->attnum;
			col->typid = att->atttypid;
			col->len = att->attlen;
			col->byval = att->attbyval;
		}
		if (col->attnum == 0 || col->len == -2)
			return false;
		hash = hash_combine(hash, hash_bytes((const unsigned char *) colnames[i],
											 strlen(colnames[i])));
		hash = hash_combine(hash, hash_uint32(getBaseType(col->typid)));
	}
	layout->ncols = ncols;
	layout->id = (int32) hash;
	return true;
}

void
key_run_start(KeyRun *run, const KeyLayout *layout)
{
	run->layout = layout;
	run->broken = false;
	memset(run->last, 0, sizeof(int64) * layout->ncols);
}

#define MAX_VARINT 10			/* bytes of a uint64 */

static inline int
put_varint(char *out, uint64 v)
{
	int			n = 0;

	while (v >= 0x80)
	{
		out[n++] = (char) (v | 0x80);
		v >>= 7;
	}
	out[n++] = (char) v;
	return n;
}

static inline bool
get_varint(const char **p, const char *end, uint64 *v)
{
	uint64		result = 0;
	int			shift = 0;

	while (*p < end && shift < 64)
	{
		unsigned char c = (unsigned char) *(*p)++;

		result |= (uint64) (c & 0x7f) << shift;
		if ((c & 0x80) == 0)
		{
			*v = result;
			return true;
		}
		shift += 7;
	}
	return false;
}

static bool
pack(KeyRun *run, StringInfo buf, const Datum *values, int limit)
{
	const KeyLayout *layout = run->layout;
	int			start = buf->len;
	char		num[MAX_VARINT];

	for (int i = 0; i < layout->ncols; i++)
	{
		const KeyColumn *col = &layout->cols[i];
		const char *data;
		Size		len;
		struct varlena *plain = NULL;

		if (col->byval)
		{
			int64		v = key_to_number(values[i], col->len);

			/* unsigned arithmetic: the difference may wrap, and wraps back */
			uint64		d = (uint64) v - (uint64) run->last[i];

			if (unlikely(buf->maxlen - buf->len <= MAX_VARINT))
				enlargeStringInfo(buf, MAX_VARINT);
			buf->len += put_varint(buf->data + buf->len, (d << 1) ^ (uint64) -(int64) (d >> 63));
			if (buf->len > limit)
			{
				buf->len = start;
				return false;
			}
			continue;
		}
		if (col->len > 0)
		{
			data = DatumGetPointer(values[i]);
			len = col->len;
		}
		else
		{
			plain = (struct varlena *) PG_DETOAST_DATUM_PACKED(values[i]);
			data = VARDATA_ANY(plain);
			len = VARSIZE_ANY_EXHDR(plain);
		}
		if (buf->len + MAX_VARINT + len > limit)
		{
			buf->len = start;
			return false;
		}
		if (plain != NULL)
			appendBinaryStringInfo(buf, num, put_varint(num, len));
		appendBinaryStringInfo(buf, data, len);
		if (plain != NULL && (Pointer) plain != DatumGetPointer(values[i]))
			pfree(plain);
	}
	for (int i = 0; i < layout->ncols; i++)
	{
		if (layout->cols[i].byval)
			run->last[i] = key_to_number(values[i], layout->cols[i].len);
	}
	return true;
}

bool
key_pack(KeyRun *run, StringInfo buf, const Datum *values)
{
	return pack(run, buf, values, KEY_CHUNK_BYTES);
}

bool
key_unpack(KeyRun *run, const char **p, const char *end, Datum *values)
{
	const KeyLayout *layout = run->layout;

	if (*p >= end)
		return false;

	for (int i = 0; i < layout->ncols; i++)
	{
		const KeyColumn *col = &layout->cols[i];
		uint64		v;

		if (col->byval)
		{
			if (!get_varint(p, end, &v))
				break;
			v = (v >> 1) ^ (uint64) -(int64) (v & 1);
			run->last[i] = (int64) ((uint64) run->last[i] + v);
			values[i] = key_from_number(run->last[i], col->len);
		}
		else if (col->len > 0)
		{
			if (end - *p < col->len)
				break;
			values[i] = PointerGetDatum(memcpy(palloc(col->len), *p, col->len));
			*p += col->len;
		}
		else
		{
			struct varlena *copy;

			if (!get_varint(p, end, &v) || v > (uint64) (end - *p))
				break;
			copy = palloc(v + VARHDRSZ);
			SET_VARSIZE(copy, v + VARHDRSZ);
			memcpy(VARDATA(copy), *p, v);
			*p += v;
			values[i] = PointerGetDatum(copy);
		}
		if (i == layout->ncols - 1)
			return true;
	}
	run->broken = true;
	return false;
}

bool
key_pack_alone(const KeyLayout *layout, StringInfo buf, const Datum *values)
{
	KeyRun		run;

	key_run_start(&run, layout);
	return pack(&run, buf, values, KEY_LONG_BYTES);
}

int
key_chunk(const char *packed, int packed_len, const char **keys, int *len)
{
	char	   *out;
	int			head;
	int			n;

	*keys = packed;
	*len = packed_len;
	if (packed_len <= KEY_CHUNK_BYTES)
		return packed_len > 0 ? 1 : KEY_UNKNOWN;

	out = palloc(MAX_VARINT + PGLZ_MAX_OUTPUT(packed_len));
	head = put_varint(out, packed_len);
	n = pglz_compress(packed, packed_len, out + head, PGLZ_strategy_always);
	if (n < 0 || head + n > KEY_CHUNK_BYTES)
	{
		pfree(out);
		*len = 0;
		return KEY_UNKNOWN;
	}
	*keys = out;
	*len = head + n;
	return KEY_LONG;
}

bool
key_chunk_read(int n, const char *keys, int len, const char **p, const char **end)
{
	uint64		raw;
	char	   *out;

	*p = keys;
	*end = keys + len;
	if (n != KEY_LONG)
		return true;
	if (!get_varint(p, *end, &raw) || raw < 1 || raw > KEY_LONG_BYTES)
		return false;
	out = palloc(raw);
	if (pglz_decompress(*p, *end - *p, out, (int32) raw, true) != (int32) raw)
	{
		pfree(out);
		return false;
	}
	*p = out;
	*end = out + raw;
	return true;
}
