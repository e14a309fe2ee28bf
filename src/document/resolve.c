/*-------------------------------------------------------------------------
 *
 * resolve.c
 *		A mirror of whatever kind against its relations: for a document, the
 *		root's columns and one more for each node that hangs on it.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "catalog/pg_class.h"
#include "document/document.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

static bool
has_name(List *names, const char *name)
{
	ListCell   *lc;

	foreach(lc, names)
	{
		if (strcmp(lfirst(lc), name) == 0)
			return true;
	}
	return false;
}

MirrorTable *
document_mirror(Relation rel, MirrorSpec *spec)
{
	MirrorSpec	root = *spec;
	MirrorTable *table;
	Document   *doc;
	List	   *key;
	List	   *used = NIL;
	ListCell   *lc;

	if (spec->definition == NULL)
		return mirror_resolve(rel, spec);

	mirror_check_relation(rel);
	doc = document_resolve(rel, spec, &spec->definition->root, spec->relations, spec->mirror_id == 0);
	key = spec->key_columns != NIL ? spec->key_columns : mirror_find_key(rel);
	root.columns = NIL;
	foreach(lc, doc->root->columns)
	{
		DocColumn  *col = lfirst(lc);

		root.columns = lappend(root.columns, col->name);
		root.target_names = lappend(root.target_names, col->key);
	}
	foreach(lc, key)
	{
		/* a document has its root's key, asked for or not */
		if (has_name(root.columns, lfirst(lc)))
			continue;
		root.columns = lappend(root.columns, lfirst(lc));
		root.target_names = lappend(root.target_names, lfirst(lc));
	}
	foreach(lc, doc->root->children)
	{
		DocNode    *node = lfirst(lc);
		DocNode    *shown = document_shown(node);
		NestedColumn *nested = palloc0(sizeof(NestedColumn));

		nested->name = shown->label;
		nested->typid = document_column_type(node);
		nested->type = shown->type;
		nested->storage = shown->scalar && !shown->many ?
			((DocColumn *) linitial(shown->columns))->map.storage : NULL;
		nested->kind = shown->kind;
		nested->nmembers = shown->nmembers;
		nested->members = shown->members;
		nested->node = node;
		root.nested = lappend(root.nested, nested);
	}
	table = mirror_resolve(rel, &root);
	table->doc = doc;

	/* a filter may look at any column of its row */
	for (int i = 0; table->row_filter != NULL && i < RelationGetDescr(rel)->natts; i++)
	{
		if (!TupleDescAttr(RelationGetDescr(rel), i)->attisdropped)
			used = lappend(used, pstrdup(NameStr(TupleDescAttr(RelationGetDescr(rel), i)->attname)));
	}
	document_links(doc, spec, mirror_key_names(table), used);
	return table;
}
