/*-------------------------------------------------------------------------
 *
 * rowset.c
 *		Rows on their way to the target, column by column.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "target/rowset.h"

#define ROWSET_FIRST_ROWS 64

RowSet *
rowset_create(MemoryContext parent, int ncols)
{
	MemoryContext cxt = AllocSetContextCreate(parent, "crate_sync rows",
											  ALLOCSET_DEFAULT_SIZES);
	MemoryContext oldcxt = MemoryContextSwitchTo(cxt);
	RowSet	   *rs = palloc0(sizeof(RowSet));

	rs->cxt = cxt;
	rs->ncols = ncols;
	rs->maxrows = ROWSET_FIRST_ROWS;
	rs->cols = palloc0(sizeof(CellColumn) * ncols);
	for (int i = 0; i < ncols; i++)
	{
		initStringInfo(&rs->cols[i].data);
		rs->cols[i].end = palloc(sizeof(uint32) * rs->maxrows);
	}
	MemoryContextSwitchTo(oldcxt);
	return rs;
}

void
rowset_free(RowSet *rs)
{
	MemoryContextDelete(rs->cxt);
}

void
rowset_reset(RowSet *rs)
{
	for (int i = 0; i < rs->ncols; i++)
		resetStringInfo(&rs->cols[i].data);
	rs->nrows = 0;
	rs->ndead = 0;
	if (rs->dead != NULL)
		pfree(rs->dead);
	rs->dead = NULL;
}

int
rowset_end_row(RowSet *rs)
{
	if (rs->nrows == rs->maxrows)
	{
		int			n = rs->maxrows * 2;

		for (int i = 0; i < rs->ncols; i++)
			rs->cols[i].end = repalloc(rs->cols[i].end, sizeof(uint32) * n);
		if (rs->dead != NULL)
		{
			rs->dead = repalloc(rs->dead, sizeof(bool) * n);
			memset(rs->dead + rs->maxrows, 0, sizeof(bool) * (n - rs->maxrows));
		}
		rs->maxrows = n;
	}
	for (int i = 0; i < rs->ncols; i++)
	{
		appendStringInfoCharMacro(&rs->cols[i].data, ',');
		rs->cols[i].end[rs->nrows] = rs->cols[i].data.len;
	}
	return rs->nrows++;
}

void
rowset_undo_row(RowSet *rs)
{
	for (int i = 0; i < rs->ncols; i++)
	{
		StringInfo	data = &rs->cols[i].data;

		data->len = rs->nrows > 0 ? rs->cols[i].end[rs->nrows - 1] : 0;
		data->data[data->len] = '\0';
	}
}

const char *
rowset_get(const RowSet *rs, int row, int col, int *len)
{
	const CellColumn *c = &rs->cols[col];
	uint32		start = row > 0 ? c->end[row - 1] : 0;

	*len = c->end[row] - start - 1;
	return c->data.data + start;
}

void
rowset_render_column(const RowSet *rs, int col, int lo, int hi, StringInfo buf)
{
	const CellColumn *c = &rs->cols[col];
	int			before = buf->len;
	int			i = lo;

	while (i < hi)
	{
		int			from;

		while (rs->dead != NULL && i < hi && rs->dead[i])
			i++;
		from = i;
		if (rs->dead == NULL)
			i = hi;
		else
		{
			while (i < hi && !rs->dead[i])
				i++;
		}
		if (i > from)
		{
			uint32		start = from > 0 ? c->end[from - 1] : 0;

			appendBinaryStringInfo(buf, c->data.data + start, c->end[i - 1] - start);
		}
	}
	if (buf->len > before)
		buf->data[--buf->len] = '\0';	/* the last comma */
}

int
rowset_live(const RowSet *rs, int lo, int hi)
{
	int			n = hi - lo;

	for (int i = lo; rs->dead != NULL && i < hi; i++)
		n -= rs->dead[i];
	return n;
}

void
rowset_kill(RowSet *rs, int row)
{
	if (rs->dead == NULL)
	{
		rs->dead = MemoryContextAllocZero(rs->cxt, sizeof(bool) * rs->maxrows);
	}
	if (!rs->dead[row])
	{
		rs->dead[row] = true;
		rs->ndead++;
	}
}

Size
rowset_bytes(const RowSet *rs)
{
	Size		n = 0;

	for (int i = 0; i < rs->ncols; i++)
		n += rs->cols[i].data.len;
	return n;
}
