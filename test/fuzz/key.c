/*-------------------------------------------------------------------------
 *
 * key.c
 *		Chunks of packed keys: what was packed reads back the same, what was
 *		not is an error or some keys, and no crash.
 *
 * The input: a letter for the layout, then a chunk.
 *
 *-------------------------------------------------------------------------
 */
#include "crate_sync.h"

#include "catalog/pg_type.h"
#include "fuzz.h"
#include "key.h"
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

static void
key_one(const char *data, int len)
{
	KeyLayout	layout;
	KeyRun		run;
	const char *p = data + 1;
	const char *end = data + len;
	const char *q;
	Datum	  (*keys)[3] = palloc(sizeof(Datum) * 3 * MAX_KEYS);
	Datum		again[3];
	StringInfoData buf;
	int			n = 0;
	int			packed = 0;

	if (len < 1)
		return;
	memset(&layout, 0, sizeof(layout));
	layout.ncols = layouts[((unsigned char) data[0] - 'a') % lengthof(layouts)].ncols;
	memcpy(layout.cols, layouts[((unsigned char) data[0] - 'a') % lengthof(layouts)].cols,
		   sizeof(layouts[0].cols));

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
