/*-------------------------------------------------------------------------
 *
 * keyset.c
 *		Sets of keys whose rows are to be read.
 *
 * A key that is one integer, as most are, is held as such: the set is sorted
 * before the first is asked for, and a row that an index gives in that order
 * finds its key at hand.  Other keys are found by a hash of their cells, the
 * target's spelling.
 *
 * Keys are asked for from the front, so many at a time.  A key is open until
 * it is settled; the keys asked for are the open ones before asked_end.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "catalog/pg_type.h"
#include "pipeline/keymap.h"
#include "pipeline/table.h"
#include "utils/array.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"

/* a key that is not an integer */
typedef struct KeyEntry
{
	Datum	   *values;
	uint32		cells;			/* offset in KeySet.arena */
	uint32		len;
	int			next;			/* same hash, other key; -1: none */
} KeyEntry;

/* memory for a key beside its cells and values, arrays being up to half empty */
#define ENTRY_OVERHEAD	(2 * (sizeof(KeyEntry) + sizeof(KeyMapEntry) + sizeof(bool)) + 32)
#define NUMBER_OVERHEAD (2 * (sizeof(int64) + sizeof(bool)))

struct KeySet
{
	MemoryContext cxt;
	SyncTable  *st;
	int			n;
	int			max;
	int			first_open;		/* keys before this one are settled */
	int			asked_end;
	int			nopen;
	bool	   *settled;
	Size		bytes;			/* about what it takes */
	MemoryContextCallback freed;
	StringInfoData arena;		/* cells: of all keys, or of the last one asked about */

	int64	   *numbers;		/* NULL: the keys are of another kind */
	bool		sorted;			/* ascending, each once */
	int			cursor;			/* where the last one was found, and one on */
	Datum		value;

	keymap_hash *map;			/* from a hash of cells to an entry */
	KeyEntry   *entries;
};

Size		worker_unread_bytes = 0;

static void
keyset_freed(void *arg)
{
	worker_unread_bytes -= ((KeySet *) arg)->bytes;
}

/* one integer, whose order as a number is the type's */
static bool
is_number(const KeyLayout *layout)
{
	Oid			base;

	if (layout->ncols != 1 || !layout->cols[0].byval)
		return false;
	base = getBaseType(layout->cols[0].typid);
	return base == INT2OID || base == INT4OID || base == INT8OID;
}

KeySet *
keyset_create(MemoryContext cxt, SyncTable *st)
{
	MemoryContext own = AllocSetContextCreate(cxt, "crate_sync keys", ALLOCSET_DEFAULT_SIZES);
	MemoryContext oldcxt = MemoryContextSwitchTo(own);
	KeySet	   *ks = palloc0(sizeof(KeySet));

	ks->cxt = own;
	ks->st = st;
	ks->max = 64;
	ks->settled = palloc(sizeof(bool) * ks->max);
	initStringInfo(&ks->arena);
	if (st->key_is_number)
	{
		ks->numbers = palloc(sizeof(int64) * ks->max);
		ks->sorted = true;
	}
	else
	{
		ks->map = keymap_create(own, 256, NULL);
		ks->entries = palloc(sizeof(KeyEntry) * ks->max);
	}
	ks->freed.func = keyset_freed;
	ks->freed.arg = ks;
	MemoryContextRegisterResetCallback(own, &ks->freed);
	MemoryContextSwitchTo(oldcxt);
	return ks;
}

void
keyset_free(KeySet *ks)
{
	MemoryContextDelete(ks->cxt);
}

/* room for one more, which is open */
static int
new_key(KeySet *ks, Size bytes)
{
	if (ks->n == ks->max)
	{
		ks->max *= 2;
		ks->settled = repalloc(ks->settled, sizeof(bool) * ks->max);
		if (ks->numbers != NULL)
			ks->numbers = repalloc(ks->numbers, sizeof(int64) * ks->max);
		else
			ks->entries = repalloc(ks->entries, sizeof(KeyEntry) * ks->max);
	}
	ks->settled[ks->n] = false;
	ks->nopen++;
	ks->bytes += bytes;
	worker_unread_bytes += bytes;
	return ks->n++;
}

int
keyset_find(const KeySet *ks, uint64 hash, const char *cells, int len)
{
	KeyMapEntry *h = keymap_lookup(ks->map, hash);

	for (int i = h ? (int) h->value : -1; i >= 0; i = ks->entries[i].next)
	{
		if (ks->entries[i].len == len &&
			memcmp(ks->arena.data + ks->entries[i].cells, cells, len) == 0)
			return i;
	}
	return -1;
}

static void
add_entry(KeySet *ks, const Datum *values)
{
	const KeyLayout *layout = &ks->st->layout;
	int			start = ks->arena.len;
	int			len;
	KeyMapEntry *h;
	uint64		hash;
	KeyEntry   *e;
	bool		found;
	Size		bytes;
	int			i;
	MemoryContext oldcxt;

	reader_key_cells(ks->st, values, &ks->arena);
	len = ks->arena.len - start;
	hash = key_hash(ks->arena.data + start, len);
	if (keyset_find(ks, hash, ks->arena.data + start, len) >= 0)
	{
		ks->arena.len = start;
		return;
	}

	bytes = ENTRY_OVERHEAD + len;
	for (int k = 0; k < layout->ncols; k++)
	{
		const KeyColumn *col = &layout->cols[k];

		bytes += sizeof(Datum);
		if (!col->byval)
			bytes += datumGetSize(values[k], false, col->len);
	}
	i = new_key(ks, bytes);
	e = &ks->entries[i];
	oldcxt = MemoryContextSwitchTo(ks->cxt);
	e->values = palloc(sizeof(Datum) * layout->ncols);
	for (int k = 0; k < layout->ncols; k++)
		e->values[k] = datumCopy(values[k], layout->cols[k].byval, layout->cols[k].len);
	MemoryContextSwitchTo(oldcxt);
	e->cells = start;
	e->len = len;
	h = keymap_insert(ks->map, hash, &found);
	e->next = found ? (int) h->value : -1;
	h->value = i;
}

void
keyset_add(KeySet *ks, const Datum *values)
{
	int64		number;
	int			i;

	if (ks->numbers == NULL)
	{
		add_entry(ks, values);
		return;
	}
	number = key_to_number(values[0], ks->st->layout.cols[0].len);
	if (ks->n > 0 && number <= ks->numbers[ks->n - 1])
	{
		if (number == ks->numbers[ks->n - 1])
			return;
		ks->sorted = false;
	}
	i = new_key(ks, NUMBER_OVERHEAD);
	ks->numbers[i] = number;
}

static int
compare_numbers(const void *a, const void *b)
{
	int64		x = *(const int64 *) a;
	int64		y = *(const int64 *) b;

	return (x > y) - (x < y);
}

/* nothing is settled yet */
static void
sort_numbers(KeySet *ks)
{
	int			n = 0;

	if (ks->numbers == NULL || ks->sorted)
		return;
	qsort(ks->numbers, ks->n, sizeof(int64), compare_numbers);
	for (int i = 0; i < ks->n; i++)
	{
		if (n == 0 || ks->numbers[i] != ks->numbers[n - 1])
			ks->numbers[n++] = ks->numbers[i];
	}
	ks->n = ks->nopen = n;
	ks->sorted = true;
}

int
keyset_nopen(const KeySet *ks)
{
	return ks->nopen;
}

int
keyset_ask(KeySet *ks, int limit)
{
	int			asked = 0;
	int			i;

	sort_numbers(ks);
	for (i = ks->first_open; i < ks->n && asked < limit; i++)
		asked += !ks->settled[i];
	ks->asked_end = i;
	ks->cursor = ks->first_open;
	return asked;
}

int
keyset_next_open(KeySet *ks, int i)
{
	sort_numbers(ks);
	while (i < ks->n && ks->settled[i])
		i++;
	return i < ks->n ? i : -1;
}

int
keyset_next_asked(const KeySet *ks, int i)
{
	i = Max(i, ks->first_open);
	while (i < ks->asked_end && ks->settled[i])
		i++;
	return i < ks->asked_end ? i : -1;
}

bool
keyset_of_numbers(const KeySet *ks)
{
	return ks->numbers != NULL;
}

int
keyset_find_number(KeySet *ks, Datum value)
{
	int64		number = key_to_number(value, ks->st->layout.cols[0].len);
	int			lo = ks->first_open;
	int			hi = ks->asked_end;
	int			at = ks->cursor;

	/* rows come in the keys' order, mostly */
	if (at < hi && ks->numbers[at] == number)
		lo = at;
	else if (at < hi && ks->numbers[at] > number && at > lo && ks->numbers[at - 1] < number)
		return -1;
	else
	{
		while (lo < hi)
		{
			int			mid = lo + (hi - lo) / 2;

			if (ks->numbers[mid] < number)
				lo = mid + 1;
			else
				hi = mid;
		}
		if (lo == ks->asked_end)
			return -1;
		ks->cursor = lo;
		if (ks->numbers[lo] != number)
			return -1;
	}
	ks->cursor = lo + 1;
	return ks->settled[lo] ? -1 : lo;
}

void
keyset_settle(KeySet *ks, int i)
{
	if (!ks->settled[i])
	{
		ks->settled[i] = true;
		ks->nopen--;
	}
	while (ks->first_open < ks->n && ks->settled[ks->first_open])
		ks->first_open++;
}

const Datum *
keyset_values(KeySet *ks, int i)
{
	if (ks->numbers == NULL)
		return ks->entries[i].values;
	ks->value = key_from_number(ks->numbers[i], ks->st->layout.cols[0].len);
	return &ks->value;
}

const char *
keyset_cells(KeySet *ks, int i, int *len)
{
	if (ks->numbers == NULL)
	{
		*len = ks->entries[i].len;
		return ks->arena.data + ks->entries[i].cells;
	}
	resetStringInfo(&ks->arena);
	reader_key_cells(ks->st, keyset_values(ks, i), &ks->arena);
	*len = ks->arena.len;
	return ks->arena.data;
}

Datum
keyset_asked_array(KeySet *ks, int k)
{
	Oid			base = getBaseType(ks->st->layout.cols[k].typid);
	Datum	   *elems = palloc(sizeof(Datum) * Max(1, ks->asked_end - ks->first_open));
	int			n = 0;
	int16		len;
	bool		byval;
	char		align;
	ArrayType  *array;

	for (int i = keyset_next_asked(ks, 0); i >= 0; i = keyset_next_asked(ks, i + 1))
		elems[n++] = keyset_values(ks, i)[k];
	get_typlenbyvalalign(base, &len, &byval, &align);
	array = construct_array(elems, n, base, len, byval, align);
	pfree(elems);
	return PointerGetDatum(array);
}

bool
keyset_asked_range(KeySet *ks, Datum *bounds)
{
	int			first = keyset_next_asked(ks, 0);
	int			last = ks->asked_end - 1;
	int16		len = ks->st->layout.cols[0].len;
	int			asked = 0;

	if (ks->numbers == NULL || first < 0)
		return false;
	for (int i = first; i <= last; i++)
		asked += !ks->settled[i];
	/* unsigned arithmetic: it cannot overflow */
	if (((uint64) ks->numbers[last] - (uint64) ks->numbers[first]) / 2 >= (uint64) asked)
		return false;
	bounds[0] = key_from_number(ks->numbers[first], len);
	bounds[1] = key_from_number(ks->numbers[last], len);
	return true;
}

void
keyset_setup(SyncTable *st)
{
	st->key_is_number = is_number(&st->layout);
}
