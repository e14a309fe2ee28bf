/*-------------------------------------------------------------------------
 *
 * encode.c
 *		Nested columns: their type in the target, and their cells.
 *
 * A node's rows come as records, or arrays of them, and each member is
 * written by the encoder that the same column has in a flat table.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "access/htup_details.h"
#include "base/text.h"
#include "catalog/pg_type.h"
#include "document/document.h"
#include "funcapi.h"
#include "target/target.h"
#include "utils/lsyscache.h"
#include "utils/typcache.h"

/* what a record's members are, and how each is written */
struct RecordEncoder
{
	int			n;
	CellEncoder *members;
	char	  **names;			/* with quotes and colon */
	Oid		   *types;
	int32		typmod;			/* of desc */
	TupleDesc	desc;			/* NULL: none yet */
};

void
document_target_type(DocNode *node)
{
	StringInfoData buf;
	bool		first = true;
	ListCell   *lc;

	initStringInfo(&buf);
	if (node->scalar)
	{
		DocColumn  *col = linitial(node->columns);

		node->type = node->many ? psprintf("ARRAY(%s)", col->map.type) : col->map.type;
		node->kind = node->many ? CELL_ARRAY : col->map.kind;
		return;
	}
	node->members = palloc0(sizeof(TargetColumn) * (list_length(node->columns) + list_length(node->children) + 1));
	appendStringInfoString(&buf, node->many ? "ARRAY(OBJECT(STRICT) AS (" : "OBJECT(STRICT) AS (");
	foreach(lc, node->columns)
	{
		DocColumn  *col = lfirst(lc);
		TargetColumn *member = &node->members[node->nmembers++];

		member->name = col->key;
		member->type = col->map.type;
		member->storage = col->map.storage;
		member->kind = col->map.kind;
		appendStringInfo(&buf, "%s%s %s%s%s", first ? "" : ", ", target_quote_ident(col->key), col->map.type,
						 col->map.storage ? " " : "", col->map.storage ? col->map.storage : "");
		first = false;
	}
	foreach(lc, node->children)
	{
		DocNode    *child = document_shown(lfirst(lc));
		TargetColumn *member = &node->members[node->nmembers++];

		member->name = child->label;
		member->type = child->type;
		member->kind = child->kind;
		member->nmembers = child->nmembers;
		member->members = child->members;
		appendStringInfo(&buf, "%s%s %s", first ? "" : ", ", target_quote_ident(child->label), child->type);
		first = false;
	}
	appendStringInfoString(&buf, node->many ? "))" : ")");
	node->type = buf.data;
	node->kind = node->many ? CELL_ARRAY : CELL_JSON;
}

/* records of another shape than was looked at: the table is being altered */
static void
take_desc(struct RecordEncoder *rec, int32 typmod)
{
	TupleDesc	desc = lookup_rowtype_tupdesc(RECORDOID, typmod);
	bool		same = desc->natts == rec->n;
	MemoryContext oldcxt;

	for (int i = 0; same && i < rec->n; i++)
		same = TupleDescAttr(desc, i)->atttypid == rec->types[i];
	if (!same)
	{
		ReleaseTupleDesc(desc);
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("a table of the document is being altered")));
	}
	oldcxt = MemoryContextSwitchTo(GetMemoryChunkContext(rec));
	rec->desc = CreateTupleDescCopy(desc);
	rec->typmod = typmod;
	MemoryContextSwitchTo(oldcxt);
	ReleaseTupleDesc(desc);
}

static void
encode_record(StringInfo buf, Datum value, CellEncoder *enc)
{
	struct RecordEncoder *rec = enc->record;
	HeapTupleHeader header = DatumGetHeapTupleHeader(value);
	HeapTupleData tup;
	Datum	   *values = palloc(sizeof(Datum) * rec->n);
	bool	   *nulls = palloc(sizeof(bool) * rec->n);

	if (rec->desc == NULL || rec->typmod != HeapTupleHeaderGetTypMod(header))
		take_desc(rec, HeapTupleHeaderGetTypMod(header));
	tup.t_len = HeapTupleHeaderGetDatumLength(header);
	ItemPointerSetInvalid(&tup.t_self);
	tup.t_tableOid = InvalidOid;
	tup.t_data = header;
	heap_deform_tuple(&tup, rec->desc, values, nulls);

	for (int i = 0; i < rec->n; i++)
	{
		appendStringInfoChar(buf, i == 0 ? '{' : ',');
		appendStringInfoString(buf, rec->names[i]);
		if (nulls[i])
			appendBinaryStringInfo(buf, "null", 4);
		else
			rec->members[i].encode(buf, values[i], &rec->members[i]);
	}
	appendStringInfoChar(buf, '}');
	pfree(values);
	pfree(nulls);
	if ((Pointer) header != DatumGetPointer(value))
		pfree(header);
}

static Oid
shown_type(const DocNode *node)
{
	if (node->scalar)
	{
		Oid			typid = ((DocColumn *) linitial(node->columns))->typid;

		return node->many ? get_array_type(typid) : typid;
	}
	return node->many ? RECORDARRAYOID : RECORDOID;
}

Oid
document_column_type(const DocNode *node)
{
	return shown_type(document_shown(node));
}

static char *
member_name(const char *name)
{
	StringInfoData buf;

	initStringInfo(&buf);
	types_json_string(&buf, name, strlen(name));
	appendStringInfoChar(&buf, ':');
	return buf.data;
}

void
document_encoder(const DocNode *node, CellEncoder *enc)
{
	CellEncoder *one = enc;
	Oid			elemtype = RECORDOID;
	ListCell   *lc;
	int			i = 0;

	node = document_shown(node);
	if (node->many)
		one = palloc0(sizeof(CellEncoder));
	if (node->scalar)
	{
		DocColumn  *col = linitial(node->columns);

		types_encoder(col->typid, col->typmod, &col->map, one);
		elemtype = col->typid;
	}
	else
	{
		struct RecordEncoder *rec = palloc0(sizeof(struct RecordEncoder));

		rec->n = list_length(node->columns) + list_length(node->children);
		rec->members = palloc0(sizeof(CellEncoder) * (rec->n + 1));
		rec->names = palloc(sizeof(char *) * (rec->n + 1));
		rec->types = palloc(sizeof(Oid) * (rec->n + 1));
		foreach(lc, node->columns)
		{
			DocColumn  *col = lfirst(lc);

			types_encoder(col->typid, col->typmod, &col->map, &rec->members[i]);
			rec->names[i] = member_name(col->key);
			rec->types[i++] = col->typid;
		}
		foreach(lc, node->children)
		{
			DocNode    *child = lfirst(lc);

			document_encoder(child, &rec->members[i]);
			rec->names[i] = member_name(document_shown(child)->label);
			rec->types[i++] = document_column_type(child);
		}
		one->encode = encode_record;
		one->record = rec;
		one->typid = RECORDOID;
	}
	if (node->many)
		types_array_encoder(elemtype, one, enc);
}
