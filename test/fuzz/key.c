/*-------------------------------------------------------------------------
 *
 * key.c
 *		Chunks of packed keys: what was packed reads back the same, what was
 *		not is an error or some keys, and no crash.
 *
 * The input: a letter for the layout, then a chunk; a capital one: a chunk of
 * one long key.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "catalog/pg_type.h"
#include "fuzz.h"
#include "queue/key.h"
#include "utils/datum.h"

static const struct
{
	int			ncols;
	KeyColumn	cols[3];
}			layouts[] =
{
	{1, {{1, INT8OID, 8, true}}},
	{1, {{1, INT4OID, 4, true}}},
	{1, {{1, INT2OID, 2, true}}},
	{1, {{1, BOOLOID, 1, true}}},
	{1, {{1, TEXTOID, -1, false}}},
	{1, {{1, UUIDOID, 16, false}}},
	{2, {{1, INT8OID, 8, true}, {2, TEXTOID, -1, false}}},
	{3, {{1, TEXTOID, -1, false}, {2, INT4OID, 4, true}, {3, UUIDOID, 16, false}}}
};

#define MAX_KEYS 512
#define MAX_ALONE 16			/* those of them that are packed alone, too */

/* a key that was packed alone, by the way of its chunk */
static void
way_of_a_chunk(const KeyLayout *layout, const char *packed, int len, const Datum *values)
{
	const char *keys;
	const char *p;
	const char *end;
	Datum		again[3];
	KeyRun		run;
	int			keys_len;
	int			n = key_chunk(packed, len, &keys, &keys_len);

	if (n == KEY_UNKNOWN)
	{
		if (len > 0 && len <= KEY_CHUNK_BYTES)
			fuzz_fail("a key of %d bytes has no chunk", len);
		return;
	}
	if (keys_len > KEY_CHUNK_BYTES || n != (len > KEY_CHUNK_BYTES ? KEY_LONG : 1))
		fuzz_fail("a chunk of %d bytes, n is %d, for a key of %d", keys_len, n, len);
	if (n == KEY_LONG)
		keys = fuzz_exact(keys, keys_len);
	if (!key_chunk_read(n, keys, keys_len, &p, &end))
		fuzz_fail("a chunk that was made is garbage");
	if (end - p != len || memcmp(p, packed, len) != 0)
		fuzz_fail("a key of %d bytes comes back with %d", len, (int) (end - p));
	key_run_start(&run, layout);
	if (!key_unpack(&run, &p, end, again) || p != end)
		fuzz_fail("a key of %d bytes cannot be read", len);
	for (int c = 0; c < layout->ncols; c++)
	{
		if (!datumIsEqual(values[c], again[c], layout->cols[c].byval, layout->cols[c].len))
			fuzz_fail("column %d of a long key reads back differently", c);
	}
}

static void
key_one(const char *data, int len)
{
	KeyLayout	layout;
	KeyRun		run;
	const char *p;
	const char *end;
	const char *q;
	int			letter;
	Datum	  (*keys)[3] = palloc(sizeof(Datum) * 3 * MAX_KEYS);
	Datum		again[3];
	StringInfoData buf;
	int			n = 0;
	int			packed = 0;

	if (len < 1)
		return;
	letter = (unsigned char) data[0];
	memset(&layout, 0, sizeof(layout));
	layout.ncols = layouts[(unsigned int) (letter - 'a') % lengthof(layouts)].ncols;
	memcpy(layout.cols, layouts[(unsigned int) (letter - 'a') % lengthof(layouts)].cols,
		   sizeof(layouts[0].cols));

	q = fuzz_exact(data + 1, len - 1);
	if (!key_chunk_read(letter >= 'A' && letter <= 'Z' ? KEY_LONG : 1, q, len - 1, &p, &end))
		return;
	if (end - p > KEY_LONG_BYTES)
		fuzz_fail("a key of %d bytes", (int) (end - p));
	key_run_start(&run, &layout);
	while (n < MAX_KEYS && key_unpack(&run, &p, end, keys[n]))
	{
		if (p > end)
			fuzz_fail("a key was read past the chunk's end");
		n++;
	}
	fuzz_must_not_throw();

	initStringInfo(&buf);
	key_run_start(&run, &layout);
	for (; packed < n; packed++)
	{
		int			before = buf.len;

		if (packed < MAX_ALONE)
		{
			StringInfoData alone;

			initStringInfo(&alone);
			if (key_pack_alone(&layout, &alone, keys[packed]))
				way_of_a_chunk(&layout, alone.data, alone.len, keys[packed]);
			else if (alone.len != 0)
				fuzz_fail("a key that was refused has left %d bytes", alone.len);
		}
		if (!key_pack(&run, &buf, keys[packed]))
		{
			if (buf.len != before)
				fuzz_fail("a key that was refused has left %d bytes", buf.len - before);
			break;
		}
		if (buf.len > KEY_CHUNK_BYTES)
			fuzz_fail("a chunk of %d bytes", buf.len);
	}

	q = fuzz_exact(buf.data, buf.len);
	end = q + buf.len;
	key_run_start(&run, &layout);
	for (int i = 0; i < packed; i++)
	{
		if (!key_unpack(&run, &q, end, again))
			fuzz_fail("%d keys were packed, %d read", packed, i);
		for (int c = 0; c < layout.ncols; c++)
		{
			if (!datumIsEqual(keys[i][c], again[c], layout.cols[c].byval, layout.cols[c].len))
				fuzz_fail("column %d of key %d reads back differently", c, i);
		}
	}
	if (q != end || key_unpack(&run, &q, end, again))
		fuzz_fail("more keys are read than were packed");
}

const FuzzHarness fuzz_key = {"key", NULL, key_one, true};
