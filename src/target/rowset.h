/*-------------------------------------------------------------------------
 *
 * rowset.h
 *		Rows on their way to the target, column by column.
 *
 * A cell is a JSON text (types.c encodes it): null, true, a number, a string
 * in quotes, an object or an array.  Cells of one column lie one after the
 * other, each followed by a comma, so that any range of rows renders as the
 * inside of a JSON array by one append.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_BATCH_H
#define CRATE_SYNC_BATCH_H

#include "base/base.h"

typedef struct CellColumn
{
	StringInfoData data;		/* cell ',' cell ',' ... */
	uint32	   *end;			/* offset in data past row i's comma */
} CellColumn;

/*
 * Rows of cells.  Lives in its own memory context (cxt); rowset_free frees
 * everything.  dead[i]: a later row of the same key has replaced row i, it
 * must not be sent.  dead is NULL while no row is dead.
 */
typedef struct RowSet
{
	MemoryContext cxt;
	int			ncols;
	int			nrows;			/* dead ones included */
	int			ndead;
	int			maxrows;		/* allocated */
	bool	   *dead;
	CellColumn *cols;
} RowSet;

extern RowSet *rowset_create(MemoryContext parent, int ncols);
extern void rowset_free(RowSet *rs);
extern void rowset_reset(RowSet *rs);

/*
 * Adding a row: call rowset_cell(rs, col) for every column, append the cell's
 * JSON to the returned buffer, then rowset_end_row().  After an error between
 * the two, rowset_undo_row() cuts off what was begun.
 */
static inline StringInfo
rowset_cell(RowSet *rs, int col)
{
	return &rs->cols[col].data;
}

extern int	rowset_end_row(RowSet *rs); /* returns the row's index */
extern void rowset_undo_row(RowSet *rs);

/* a cell's text, not null-terminated, without its comma */
extern const char *rowset_get(const RowSet *rs, int row, int col, int *len);

/*
 * Appends the live rows lo <= i < hi of a column, separated by commas, to
 * buf, without brackets.
 */
extern void rowset_render_column(const RowSet *rs, int col, int lo, int hi,
								 StringInfo buf);
extern int	rowset_live(const RowSet *rs, int lo, int hi);
extern void rowset_kill(RowSet *rs, int row);
extern Size rowset_bytes(const RowSet *rs);

#endif							/* CRATE_SYNC_BATCH_H */
