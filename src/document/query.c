/*-------------------------------------------------------------------------
 *
 * query.c
 *		The SQL of a document: what a row of its root shows of other tables,
 *		and which roots a link value belongs to.
 *
 * Each nested column is a subquery that names the root's row: whoever reads
 * rows of the root, by key or by place, reads documents.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "access/htup_details.h"
#include "catalog/pg_operator.h"
#include "document/document.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#define ROOT_ALIAS	"\"crate_sync t\""

static void
append_alias(StringInfo buf, const DocNode *node, const char *root)
{
	if (node->parent == NULL)
		appendStringInfoString(buf, root);
	else
		appendStringInfo(buf, "n%d", node->no);
}

static void
append_name(StringInfo buf, const DocNode *node, const char *root, const char *column)
{
	append_alias(buf, node, root);
	appendStringInfo(buf, ".%s", quote_identifier(column));
}

static void
append_table(StringInfo buf, Oid relid)
{
	char	   *relname = get_rel_name(relid);
	char	   *nspname = relname ? get_namespace_name(get_rel_namespace(relid)) : NULL;

	if (nspname == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("relation %u is being renamed or dropped", relid)));
	appendStringInfoString(buf, quote_qualified_identifier(nspname, relname));
}

static void
append_operator(StringInfo buf, Oid op)
{
	HeapTuple	tup = SearchSysCache1(OPEROID, ObjectIdGetDatum(op));

	if (!HeapTupleIsValid(tup))
		elog(ERROR, "cache lookup failed for operator %u", op);
	appendStringInfo(buf, " OPERATOR(%s.%s) ",
					 quote_identifier(get_namespace_name(((Form_pg_operator) GETSTRUCT(tup))->oprnamespace)),
					 NameStr(((Form_pg_operator) GETSTRUCT(tup))->oprname));
	ReleaseSysCache(tup);
}

/* the node's rows are those of its parent's */
static void
append_link(StringInfo buf, const DocNode *node, const char *root)
{
	for (int i = 0; i < list_length(node->up); i++)
	{
		if (i > 0)
			appendStringInfoString(buf, " AND ");
		append_name(buf, node->parent, root, list_nth(node->down, i));
		append_operator(buf, list_nth_oid(node->equals, i));
		append_name(buf, node, root, list_nth(node->up, i));
	}
}

static void
append_order(StringInfo buf, const DocNode *node, const char *root, bool *first)
{
	ListCell   *lc;

	foreach(lc, node->order)
	{
		appendStringInfoString(buf, *first ? " ORDER BY " : ", ");
		*first = false;
		append_name(buf, node, root, lfirst(lc));
	}
}

void
document_append_column(StringInfo buf, const DocNode *node, const char *alias)
{
	const DocNode *through = node->through ? node : NULL;
	const DocNode *shown = through ? linitial(through->children) : node;
	bool		first = true;
	ListCell   *lc;

	appendStringInfoString(buf, shown->many ? "ARRAY(SELECT " : "(SELECT ");
	if (!shown->scalar)
		appendStringInfoString(buf, "ROW(");
	foreach(lc, shown->columns)
	{
		if (!first)
			appendStringInfoString(buf, ", ");
		first = false;
		append_name(buf, shown, alias, ((DocColumn *) lfirst(lc))->name);
	}
	foreach(lc, shown->children)
	{
		if (!first)
			appendStringInfoString(buf, ", ");
		first = false;
		document_append_column(buf, lfirst(lc), alias);
	}
	if (!shown->scalar)
		appendStringInfoChar(buf, ')');
	appendStringInfoString(buf, " FROM ");
	append_table(buf, node->relid);
	appendStringInfoString(buf, " AS ");
	append_alias(buf, node, alias);
	if (through != NULL)
	{
		appendStringInfoString(buf, " JOIN ");
		append_table(buf, shown->relid);
		appendStringInfoString(buf, " AS ");
		append_alias(buf, shown, alias);
		appendStringInfoString(buf, " ON ");
		append_link(buf, shown, alias);
	}
	appendStringInfoString(buf, " WHERE ");
	append_link(buf, node, alias);
	if (shown->many || !shown->unique)
	{
		/* whatever order rows come in, the same document is the same bytes */
		first = true;
		append_order(buf, shown, alias, &first);
		if (through != NULL)
			append_order(buf, through, alias, &first);
	}
	if (!shown->many)
		appendStringInfoString(buf, " LIMIT 1");
	appendStringInfoChar(buf, ')');
}

void
document_append_walk(StringInfo buf, const DocNode *node, const char *from,
					 const char *condition, List *key)
{
	const DocNode *parent = node->parent;
	List	   *way = NIL;
	ListCell   *lc;

	appendStringInfoString(buf, "SELECT ");
	foreach(lc, key)
		appendStringInfo(buf, "%s" ROOT_ALIAS ".%s", foreach_current_index(lc) > 0 ? ", " : "",
						 quote_identifier(lfirst(lc)));
	appendStringInfo(buf, " FROM %s AS " ROOT_ALIAS, from);
	for (const DocNode *n = parent; n->parent != NULL; n = n->parent)
		way = lcons(unconstify(DocNode *, n), way);
	foreach(lc, way)
	{
		DocNode    *n = lfirst(lc);

		appendStringInfoString(buf, " JOIN ");
		append_table(buf, n->relid);
		appendStringInfoString(buf, " AS ");
		append_alias(buf, n, ROOT_ALIAS);
		appendStringInfoString(buf, " ON ");
		append_link(buf, n, ROOT_ALIAS);
	}
	appendStringInfoString(buf, " WHERE ");
	if (list_length(node->up) == 1 && document_has_index(parent->relid, node->down))
	{
		append_name(buf, parent, ROOT_ALIAS, linitial(node->down));
		append_operator(buf, linitial_oid(node->equals));
		appendStringInfoString(buf, "ANY ($1)");
	}
	else
	{
		appendStringInfoString(buf, "EXISTS (SELECT FROM ROWS FROM (");
		for (int i = 0; i < list_length(node->up); i++)
			appendStringInfo(buf, "%spg_catalog.unnest($%d)", i > 0 ? ", " : "", i + 1);
		appendStringInfoString(buf, ") AS \"crate_sync q\" (");
		for (int i = 0; i < list_length(node->up); i++)
			appendStringInfo(buf, "%sk%d", i > 0 ? ", " : "", i);
		appendStringInfoString(buf, ") WHERE ");
		for (int i = 0; i < list_length(node->up); i++)
		{
			if (i > 0)
				appendStringInfoString(buf, " AND ");
			append_name(buf, parent, ROOT_ALIAS, list_nth(node->down, i));
			append_operator(buf, list_nth_oid(node->equals, i));
			appendStringInfo(buf, "\"crate_sync q\".k%d", i);
		}
		appendStringInfoChar(buf, ')');
	}
	if (condition != NULL)
		appendStringInfo(buf, " AND %s", condition);
}

bool
document_is_identity(const Document *doc, const DocNode *node, List *key, int *place)
{
	ListCell   *lk;

	if (node->parent == NULL)
	{
		for (int k = 0; k < list_length(key); k++)
			place[k] = k;
		return true;
	}
	if (node->parent->parent != NULL || list_length(node->up) != list_length(key))
		return false;
	foreach(lk, key)
	{
		bool		found = false;

		for (int i = 0; i < list_length(node->down) && !found; i++)
		{
			AttrNumber	a;
			AttrNumber	b;

			if (strcmp(list_nth(node->down, i), lfirst(lk)) != 0)
				continue;
			/* of another type, a value would be packed and spelled otherwise */
			a = get_attnum(node->relid, list_nth(node->up, i));
			b = get_attnum(node->parent->relid, lfirst(lk));
			if (getBaseType(get_atttype(node->relid, a)) != getBaseType(get_atttype(node->parent->relid, b)))
				return false;
			place[foreach_current_index(lk)] = i;
			found = true;
		}
		if (!found)
			return false;
	}
	return true;
}

char *
document_names(const Document *doc)
{
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	foreach(lc, doc->relids)
	{
		char	   *relname = get_rel_name(lfirst_oid(lc));
		char	   *nspname = relname ? get_namespace_name(get_rel_namespace(lfirst_oid(lc))) : NULL;

		if (nspname == NULL)
			return NULL;
		appendStringInfo(&buf, "%s ", quote_qualified_identifier(nspname, relname));
	}
	return buf.data;
}

char *
document_query(const MirrorTable *table)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < table->ncols; i++)
	{
		appendStringInfoString(&buf, i == 0 ? "SELECT " : ",\n       ");
		if (table->columns[i].node != NULL)
			document_append_column(&buf, table->columns[i].node, "t");
		else
			appendStringInfo(&buf, "t.%s", quote_identifier(table->columns[i].name));
		appendStringInfo(&buf, " AS %s", quote_identifier(table->target.cols[i].name));
	}
	appendStringInfoString(&buf, "\n  FROM ");
	append_table(&buf, table->relid);
	appendStringInfoString(&buf, " AS t");
	if (table->row_filter != NULL)
		appendStringInfo(&buf, "\n WHERE %s", table->row_filter);
	return buf.data;
}
