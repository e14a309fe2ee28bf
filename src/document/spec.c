/*-------------------------------------------------------------------------
 *
 * spec.c
 *		From a document's definition in JSON to nodes: which tables, linked
 *		how, showing what.
 *
 * The language is PGSync's, whose users have files of it.  What would have to
 * be guessed is an error that names the choices; what is ignored is said.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/stratnum.h"
#include "capture/triggers.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_partitioned_table.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "document/document.h"
#include "nodes/nodeFuncs.h"
#include "parser/parse_coerce.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#define MAX_DEPTH	100
#define MAX_FIELDS	1000		/* CrateDB's mapping.total_fields.limit */

#define NODE_KEYS	"table, schema, columns, label, children, relationship, transform"
#define LINK_KEYS	"type, variant, foreign_key, through_tables"
#define ENTRY_KEYS	"database, index, nodes, setting, mapping, mappings, routing, pipeline, plugins"

typedef struct Resolver
{
	Document   *doc;
	List	   *nodes;			/* of DocNode * */
	ListCell   *next_relid;		/* of what is stored; NULL: look names up */
	List	   *relids;
	bool		stored;
	bool		warn;
	int			nfields;
	int			depth;
} Resolver;

/* ---------------------------------------------------------------------------
 * JSON
 * ------------------------------------------------------------------------ */

static JsonbValue *
field(JsonbContainer *jc, const char *name)
{
	JsonbValue *v = getKeyJsonValueFromContainer(jc, name, strlen(name), NULL);

	return v != NULL && v->type == jbvNull ? NULL : v;
}

pg_attribute_noreturn() static void
bad_field(const char *path, const char *name, const char *wanted)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("\"%s\" of %s must be %s", name, path, wanted)));
}

static char *
string_value(const JsonbValue *v)
{
	if (v->type != jbvString || v->val.string.len == 0)
		return NULL;
	return pnstrdup(v->val.string.val, v->val.string.len);
}

static char *
string_field(JsonbContainer *jc, const char *path, const char *name)
{
	JsonbValue *v = field(jc, name);
	char	   *s;

	if (v == NULL)
		return NULL;
	s = string_value(v);
	if (s == NULL)
		bad_field(path, name, "a string that is not empty");
	return s;
}

static JsonbContainer *
object_field(JsonbContainer *jc, const char *path, const char *name)
{
	JsonbValue *v = field(jc, name);

	if (v == NULL)
		return NULL;
	if (v->type != jbvBinary || !JsonContainerIsObject(v->val.binary.data))
		bad_field(path, name, "an object");
	return v->val.binary.data;
}

static JsonbContainer *
array_field(JsonbContainer *jc, const char *path, const char *name)
{
	JsonbValue *v = field(jc, name);

	if (v == NULL)
		return NULL;
	if (v->type != jbvBinary || !JsonContainerIsArray(v->val.binary.data))
		bad_field(path, name, "an array");
	return v->val.binary.data;
}

/* of char *; NIL: absent, or empty */
static List *
strings_field(JsonbContainer *jc, const char *path, const char *name)
{
	JsonbContainer *array = array_field(jc, path, name);
	List	   *strings = NIL;

	for (uint32 i = 0; array != NULL && i < JsonContainerSize(array); i++)
	{
		char	   *s = string_value(getIthJsonbValueFromContainer(array, i));

		if (s == NULL)
			bad_field(path, name, "an array of strings");
		strings = lappend(strings, s);
	}
	return strings;
}

static bool
listed(const char *const *names, int n, const char *name)
{
	for (int i = 0; i < n; i++)
	{
		if (strcmp(names[i], name) == 0)
			return true;
	}
	return false;
}

/* every key is one of those known, or of those that are not built */
static void
check_keys(JsonbContainer *jc, const char *path, const char *const *known, int nknown,
		   const char *const *later, int nlater, const char *list)
{
	JsonbIterator *it = JsonbIteratorInit(jc);
	JsonbIteratorToken tok;
	JsonbValue	v;

	while ((tok = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		char	   *key;

		if (tok != WJB_KEY)
			continue;
		key = pnstrdup(v.val.string.val, v.val.string.len);
		if (listed(later, nlater, key))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("\"%s\" of %s is not supported", key, path),
					 errhint("Leave it out, or have a column or a table hold what it makes.  Supported are: %s.", list)));
		if (!listed(known, nknown, key))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("unknown key \"%s\" of %s", key, path),
					 errhint("Valid keys are: %s.", list)));
	}
}

static void
ignored(Resolver *r, const char *path, const char *what)
{
	if (r->warn)
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("\"%s\" of %s is ignored", what, path)));
}

void
document_entry(JsonbContainer *jc, DocEntry *entry, bool warn)
{
	static const char *const known[] = {"database", "index", "nodes", "setting", "mapping", "mappings",
	"routing", "pipeline", "plugins"};
	static const char *const no_use[] = {"setting", "mapping", "mappings", "routing", "pipeline", "plugins"};
	char	   *database = get_database_name(MyDatabaseId);

	memset(entry, 0, sizeof(DocEntry));
	if (!JsonContainerIsObject(jc))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a document's definition must be a JSON object"),
				 errhint("Give a node, {\"table\": ...}, or one entry of a file of PGSync's.")));
	if (field(jc, "nodes") == NULL)
	{
		entry->nodes = jc;
		return;
	}
	check_keys(jc, "the document", known, lengthof(known), NULL, 0, ENTRY_KEYS);
	entry->database = string_field(jc, "the document", "database");
	entry->index = string_field(jc, "the document", "index");
	if (entry->index == NULL)
		entry->index = entry->database;
	if (entry->database != NULL && strcmp(entry->database, database) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_CATALOG_NAME),
				 errmsg("the document is of database \"%s\", this one is \"%s\"", entry->database, database),
				 errhint("Add it there, or leave \"database\" out.")));
	entry->nodes = object_field(jc, "the document", "nodes");
	for (int i = 0; warn && i < lengthof(no_use); i++)
	{
		if (field(jc, no_use[i]) != NULL)
			ereport(WARNING,
					(errcode(ERRCODE_WARNING),
					 errmsg("\"%s\" of the document is ignored", no_use[i])));
	}
}

/* ---------------------------------------------------------------------------
 * Tables
 * ------------------------------------------------------------------------ */

static Oid
table_oid(const char *path, char *schema, const char *table)
{
	Oid			nsp = get_namespace_oid(schema, true);
	Oid			relid;

	if (!OidIsValid(nsp))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_SCHEMA),
				 errmsg("schema \"%s\" of %s does not exist", schema, path)));
	relid = get_relname_relid(table, nsp);
	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table \"%s.%s\" of %s does not exist", schema, table, path),
				 errhint("A table outside of schema public needs \"schema\".")));
	return relid;
}

Oid
document_root(JsonbContainer *node)
{
	char	   *table;
	char	   *schema;

	if (node == NULL || !JsonContainerIsObject(node))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a document's definition must be a JSON object")));
	table = string_field(node, "the root", "table");
	schema = string_field(node, "the root", "schema");
	if (table == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the root has no \"table\"")));
	return table_oid("the root", schema ? schema : "public", table);
}

static Oid
next_relid(Resolver *r, const char *path, char *schema, const char *table)
{
	Oid			relid;

	if (!r->stored)
		return table_oid(path, schema, table);
	if (r->next_relid == NULL)
		elog(ERROR, "the tables of a document do not match its definition");
	relid = lfirst_oid(r->next_relid);
	r->next_relid = lnext(r->relids, r->next_relid);
	return relid;
}

/*
 * Making triggers evaluates functions of constants in partition keys, as whoever
 * makes them: nobody's code may be there.  (A table with a key has none.)
 */
static void
check_partition_keys(Relation rel, const char *path)
{
	ListCell   *lc;

	foreach(lc, find_all_inheritors(RelationGetRelid(rel), NoLock, NULL))
	{
		HeapTuple	tup = SearchSysCache1(PARTRELID, ObjectIdGetDatum(lfirst_oid(lc)));
		bool		plain;

		if (!HeapTupleIsValid(tup))
			continue;
		plain = heap_attisnull(tup, Anum_pg_partitioned_table_partexprs, NULL);
		ReleaseSysCache(tup);
		if (!plain)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("%s: \"%s\" is partitioned by an expression", path, get_rel_name(lfirst_oid(lc))),
					 errhint("Partition it by columns alone.")));
	}
}

/* open, its lock kept; what is stored may be gone */
static Relation
open_node(Resolver *r, Oid relid, const char *path)
{
	Relation	rel = try_relation_open(relid, AccessShareLock);

	if (rel == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("the table of %s was dropped", path),
				 r->stored ? errhint("Remove the document with crate_sync.remove_document and add it anew.") : 0));
	mirror_check_relation(rel);
	if (rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
		check_partition_keys(rel, path);
	return rel;
}

static Form_pg_attribute
column_of(Relation rel, const char *path, const char *name)
{
	AttrNumber	attnum = get_attnum(RelationGetRelid(rel), name);

	if (attnum <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of %s does not exist in \"%s\"", name, path,
						RelationGetRelationName(rel))));
	return TupleDescAttr(RelationGetDescr(rel), attnum - 1);
}

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

static bool
same_names(List *a, List *b)
{
	ListCell   *la;
	ListCell   *lb;

	if (list_length(a) != list_length(b))
		return false;
	forboth(la, a, lb, b)
	{
		if (strcmp(lfirst(la), lfirst(lb)) != 0)
			return false;
	}
	return true;
}

/* unique: one that allows no two rows with the same values in these columns; else one that finds them */
static bool
has_index(Oid relid, List *columns, bool unique)
{
	Relation	rel = relation_open(relid, AccessShareLock);
	List	   *indexes = RelationGetIndexList(rel);
	bool		found = false;
	ListCell   *lc;

	foreach(lc, indexes)
	{
		HeapTuple	tup = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(lfirst_oid(lc)));
		Form_pg_index index;
		int			wanted;
		bool		fits;

		if (!HeapTupleIsValid(tup))
			continue;
		index = (Form_pg_index) GETSTRUCT(tup);
		wanted = unique ? index->indnkeyatts : list_length(columns);
		fits = index->indisvalid && (!unique || (index->indisunique && index->indimmediate)) &&
			index->indnkeyatts >= wanted && heap_attisnull(tup, Anum_pg_index_indpred, NULL);
		for (int i = 0; fits && i < wanted; i++)
		{
			AttrNumber	attnum = index->indkey.values[i];

			fits = attnum > 0 &&
				has_name(columns, NameStr(TupleDescAttr(RelationGetDescr(rel), attnum - 1)->attname));
		}
		ReleaseSysCache(tup);
		found |= fits;
	}
	list_free(indexes);
	relation_close(rel, NoLock);
	return found;
}

bool
document_has_index(Oid relid, List *columns)
{
	return has_index(relid, columns, false);
}

/* ---------------------------------------------------------------------------
 * Links
 * ------------------------------------------------------------------------ */

static Oid
equality(Oid left, Oid right)
{
	TypeCacheEntry *tc;
	Oid			op;

	left = getBaseType(left);
	right = getBaseType(right);
	tc = lookup_type_cache(left, TYPECACHE_EQ_OPR | TYPECACHE_BTREE_OPFAMILY);
	if (left == right)
		return tc->eq_opr;
	op = OidIsValid(tc->btree_opf) ?
		get_opfamily_member(tc->btree_opf, left, right, BTEqualStrategyNumber) : InvalidOid;
	if (OidIsValid(op))
		return op;
	if (IsBinaryCoercible(right, left))
		return tc->eq_opr;
	if (IsBinaryCoercible(left, right))
		return lookup_type_cache(right, TYPECACHE_EQ_OPR)->eq_opr;
	return InvalidOid;
}

/* up and down of the node are known: do they fit? */
static void
check_link(DocNode *node, Relation parent, Relation rel)
{
	ListCell   *lu;
	ListCell   *ld;

	if (list_length(node->up) != list_length(node->down) || node->up == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_FOREIGN_KEY),
				 errmsg("\"foreign_key\" of %s has %d columns of the parent and %d of the child",
						node->path, list_length(node->down), list_length(node->up)),
				 errhint("They are compared pair by pair: give as many of each.")));
	if (list_length(node->up) > INDEX_MAX_KEYS)
		ereport(ERROR,
				(errcode(ERRCODE_TOO_MANY_COLUMNS),
				 errmsg("\"foreign_key\" of %s has more than %d columns", node->path, INDEX_MAX_KEYS)));
	forboth(lu, node->up, ld, node->down)
	{
		Form_pg_attribute u = column_of(rel, node->path, lfirst(lu));
		Form_pg_attribute d = column_of(parent, node->path, lfirst(ld));
		Oid			op = equality(d->atttypid, u->atttypid);

		if (!OidIsValid(op) || !OidIsValid(get_array_type(getBaseType(u->atttypid))))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_FUNCTION),
					 errmsg("%s: column \"%s\" of type %s cannot be compared with \"%s\" of type %s", node->path,
							NameStr(d->attname), format_type_be(d->atttypid),
							NameStr(u->attname), format_type_be(u->atttypid)),
					 errhint("Give both columns the same type.")));
		node->equals = lappend_oid(node->equals, op);
	}
}

static char *
name_list(List *names)
{
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	foreach(lc, names)
		appendStringInfo(&buf, "%s%s", buf.len > 0 ? ", " : "", quote_identifier(lfirst(lc)));
	return buf.data;
}

typedef struct Candidate
{
	List	   *holder;			/* columns that refer */
	List	   *referred;
	char	   *name;
} Candidate;

/* the foreign keys by which holder refers to another relation */
static List *
foreign_keys(Relation holder, Relation referred)
{
	List	   *found = NIL;
	ListCell   *lc;

	foreach(lc, RelationGetFKeyList(holder))
	{
		ForeignKeyCacheInfo *fk = lfirst(lc);
		Candidate  *c;

		if (fk->confrelid != RelationGetRelid(referred))
			continue;
		c = palloc0(sizeof(Candidate));
		c->name = get_constraint_name(fk->conoid);
		for (int i = 0; i < fk->nkeys; i++)
		{
			c->holder = lappend(c->holder, pstrdup(NameStr(TupleDescAttr(RelationGetDescr(holder), fk->conkey[i] - 1)->attname)));
			c->referred = lappend(c->referred, pstrdup(NameStr(TupleDescAttr(RelationGetDescr(referred), fk->confkey[i] - 1)->attname)));
		}
		found = lappend(found, c);
	}
	return found;
}

static void
append_candidates(StringInfo buf, List *candidates, Relation rel)
{
	ListCell   *lc;

	foreach(lc, candidates)
	{
		Candidate  *c = lfirst(lc);

		appendStringInfo(buf, "%s%s of \"%s\" (%s)", buf->len > 0 ? ", " : "", quote_identifier(c->name),
						 RelationGetRelationName(rel), name_list(c->holder));
	}
}

/*
 * The one foreign key between two tables.  Where a table refers to itself, the
 * child holds the key; a through table's own keys come first: prefer is
 * which of the two is the one, 1 the node, -1 its parent, 0 neither.
 */
static void
find_link(DocNode *node, Relation parent, Relation rel, int prefer)
{
	List	   *by_child = foreign_keys(rel, parent);
	List	   *by_parent = RelationGetRelid(parent) == RelationGetRelid(rel) ? NIL :
		foreign_keys(parent, rel);
	Candidate  *c;

	if (prefer > 0 && by_child != NIL)
		by_parent = NIL;
	if (prefer < 0 && by_parent != NIL)
		by_child = NIL;
	if (list_length(by_child) + list_length(by_parent) != 1)
	{
		StringInfoData detail;

		initStringInfo(&detail);
		append_candidates(&detail, by_child, rel);
		append_candidates(&detail, by_parent, parent);
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_FOREIGN_KEY),
				 detail.len == 0 ?
				 errmsg("%s: there is no foreign key between \"%s\" and \"%s\"", node->path,
						RelationGetRelationName(parent), RelationGetRelationName(rel)) :
				 errmsg("%s: there are several foreign keys between \"%s\" and \"%s\"", node->path,
						RelationGetRelationName(parent), RelationGetRelationName(rel)),
				 detail.len == 0 ? 0 : errdetail_internal("They are: %s.", detail.data),
				 errhint("Say which columns: \"relationship\": {..., \"foreign_key\": {\"parent\": [...], \"child\": [...]}}.")));
	}
	c = linitial(by_child != NIL ? by_child : by_parent);
	node->up = by_child != NIL ? c->holder : c->referred;
	node->down = by_child != NIL ? c->referred : c->holder;
	node->why = psprintf("by foreign key %s", quote_identifier(c->name));
}

/* "table" or "schema.table"; the node's schema is meant where it says none */
static void
split_name(const char *name, char **schema, char **table)
{
	const char *dot = strchr(name, '.');

	if (dot != NULL)
	{
		*schema = pnstrdup(name, dot - name);
		*table = pstrdup(dot + 1);
	}
	else
		*table = pstrdup(name);
}

/* ---------------------------------------------------------------------------
 * Nodes
 * ------------------------------------------------------------------------ */

static DocNode *
new_node(Resolver *r, DocNode *parent, Oid relid)
{
	DocNode    *node = palloc0(sizeof(DocNode));

	node->no = list_length(r->nodes);
	node->parent = parent;
	node->relid = relid;
	r->nodes = lappend(r->nodes, node);
	if (parent != NULL)
		parent->children = lappend(parent->children, node);
	return node;
}

static const char *
renamed(JsonbContainer *rename, const char *name)
{
	JsonbValue *v = rename ? field(rename, name) : NULL;
	char	   *to = v ? string_value(v) : NULL;

	return to ? to : name;
}

static JsonbContainer *
read_transform(Resolver *r, JsonbContainer *jc, const char *path)
{
	static const char *const known[] = {"rename", "mapping", "move"};
	static const char *const later[] = {"replace", "concat"};
	JsonbContainer *transform = object_field(jc, path, "transform");

	if (transform == NULL)
		return NULL;
	check_keys(transform, psprintf("\"transform\" of %s", path), known, lengthof(known),
			   later, lengthof(later), "rename");
	if (field(transform, "mapping") != NULL)
		ignored(r, path, "mapping");
	if (field(transform, "move") != NULL)
		ignored(r, path, "move");
	return object_field(transform, path, "rename");
}

static void
add_column(Resolver *r, DocNode *node, Form_pg_attribute att, JsonbContainer *rename)
{
	DocColumn  *col = palloc0(sizeof(DocColumn));

	col->name = pstrdup(NameStr(att->attname));
	col->key = pstrdup(renamed(rename, col->name));
	col->typid = att->atttypid;
	col->typmod = att->atttypmod;
	mirror_check_target_column(col->name, col->key);
	types_map(col->name, col->typid, col->typmod, false, NULL, &col->map);
	node->columns = lappend(node->columns, col);
	r->nfields++;
}

static void
read_columns(Resolver *r, DocNode *node, Relation rel, JsonbContainer *jc, JsonbContainer *rename)
{
	List	   *names = strings_field(jc, node->path, "columns");
	TupleDesc	desc = RelationGetDescr(rel);
	List	   *seen = NIL;
	ListCell   *lc;

	node->all_columns = names == NIL;
	for (int i = 0; names == NIL && i < desc->natts; i++)
	{
		if (!TupleDescAttr(desc, i)->attisdropped)
			add_column(r, node, TupleDescAttr(desc, i), rename);
	}
	foreach(lc, names)
	{
		char	   *name = lfirst(lc);

		if (get_attnum(RelationGetRelid(rel), name) == InvalidAttrNumber &&
			(strstr(name, "->") != NULL || strstr(name, "#>") != NULL))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("column \"%s\" of %s: paths into JSON are not supported", name, node->path),
					 errhint("List the column itself, or a generated one that holds the value.")));
		if (has_name(seen, name))
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_COLUMN),
					 errmsg("column \"%s\" of %s is listed more than once", name, node->path)));
		add_column(r, node, column_of(rel, node->path, name), rename);
		seen = lappend(seen, name);
	}
}

/* no two members of an object have one name */
static void
check_labels(const DocNode *node)
{
	List	   *keys = NIL;
	ListCell   *lc;

	foreach(lc, node->columns)
	{
		DocColumn  *col = lfirst(lc);

		if (has_name(keys, col->key))
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_COLUMN),
					 errmsg("two columns of %s would be called \"%s\"", node->path, col->key)));
		keys = lappend(keys, col->key);
	}
	foreach(lc, node->children)
	{
		DocNode    *child = document_shown(lfirst(lc));

		if (has_name(keys, child->label))
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_COLUMN),
					 errmsg("\"%s\" is the name of two members of %s", child->label, node->path),
					 errhint("Give one of them another \"label\".")));
		keys = lappend(keys, child->label);
	}
}

static void read_children(Resolver *r, DocNode *node, Relation rel, JsonbContainer *jc,
						  JsonbContainer *rename);

static void
one_of(const char *path, const char *name, const char *value, const char *a, const char *b)
{
	if (value == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"relationship\" of %s has no \"%s\"", path, name),
				 errhint("Valid are: %s, %s.", a, b)));
	if (strcmp(value, a) != 0 && strcmp(value, b) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" of %s is \"%s\"", name, path, value),
				 errhint("Valid are: %s, %s.", a, b)));
}

/* what tells rows of a node apart, and puts them in order */
static List *
order_of(Relation rel)
{
	List	   *key = mirror_find_key(rel);
	TupleDesc	desc = RelationGetDescr(rel);

	for (int i = 0; key == NIL && i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped ||
			!OidIsValid(lookup_type_cache(att->atttypid, TYPECACHE_LT_OPR)->lt_opr))
			continue;
		key = lappend(key, pstrdup(NameStr(att->attname)));
	}
	return key;
}

/* a link that was written out */
static void
stored_link(DocNode *node, JsonbContainer *relationship, int i)
{
	JsonbContainer *links = array_field(relationship, node->path, "links");
	JsonbValue *v = links ? getIthJsonbValueFromContainer(links, i) : NULL;

	if (v == NULL || v->type != jbvBinary || !JsonContainerIsObject(v->val.binary.data))
		elog(ERROR, "the definition of a document has no link for %s", node->path);
	node->up = strings_field(v->val.binary.data, node->path, "child");
	node->down = strings_field(v->val.binary.data, node->path, "parent");
	node->why = "as it was added";
}

static void
read_child(Resolver *r, DocNode *parent, Relation parent_rel, JsonbContainer *jc, JsonbContainer *rename)
{
	static const char *const known[] = {"table", "schema", "columns", "label", "children",
	"relationship", "transform"};
	static const char *const later[] = {"primary_key", "base_tables", "where", "order_by", "limit",
	"aggregate", "flatten", "types", "null_when_empty"};
	static const char *const link_known[] = {"type", "variant", "foreign_key", "through_tables", "links"};
	static const char *const link_later[] = {"match"};
	char	   *table;
	char	   *schema;
	char	   *label;
	char	   *path;
	char	   *type;
	char	   *variant;
	JsonbContainer *relationship;
	JsonbContainer *foreign_key;
	List	   *through;
	Relation	through_rel = NULL;
	Relation	rel;
	DocNode    *node;

	table = string_field(jc, psprintf("a child of %s", parent->path), "table");
	if (table == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a child of %s has no \"table\"", parent->path)));
	label = string_field(jc, table, "label");
	label = pstrdup(label == NULL ? renamed(rename, table) : r->stored ? label : renamed(rename, label));
	path = psprintf("%s.%s", parent->path, label);
	schema = string_field(jc, path, "schema");
	if (schema == NULL)
		schema = "public";
	mirror_check_target_column(label, label);
	check_keys(jc, path, known, lengthof(known), later, lengthof(later), NODE_KEYS);

	relationship = object_field(jc, path, "relationship");
	if (relationship == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s has no \"relationship\"", path),
				 errhint("Every node below the root needs one, such as {\"type\": \"one_to_many\", \"variant\": \"object\"}.")));
	check_keys(relationship, psprintf("\"relationship\" of %s", path), link_known,
			   r->stored ? lengthof(link_known) : lengthof(link_known) - 1,
			   link_later, lengthof(link_later), LINK_KEYS);
	type = string_field(relationship, path, "type");
	one_of(path, "type", type, "one_to_one", "one_to_many");
	variant = string_field(relationship, path, "variant");
	one_of(path, "variant", variant, "object", "scalar");
	foreign_key = object_field(relationship, path, "foreign_key");
	through = strings_field(relationship, path, "through_tables");
	if (list_length(through) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("%s has more than one of \"through_tables\"", path),
				 errhint("Make a node of one of them.")));
	if (foreign_key != NULL && through != NIL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("%s has both \"foreign_key\" and \"through_tables\"", path),
				 errhint("The links of a through table are those of its foreign keys.")));

	if (through != NIL)
	{
		char	   *tschema = schema;
		char	   *ttable;

		split_name(linitial(through), &tschema, &ttable);
		node = new_node(r, parent, next_relid(r, path, tschema, ttable));
		node->through = true;
		node->path = psprintf("%s (through %s)", path, (char *) linitial(through));
		through_rel = open_node(r, node->relid, node->path);
		node->order = order_of(through_rel);
		if (r->stored)
			stored_link(node, relationship, 0);
		else
			find_link(node, parent_rel, through_rel, 1);
		check_link(node, parent_rel, through_rel);
		parent = node;
	}

	node = new_node(r, parent, next_relid(r, path, schema, table));
	node->label = label;
	node->path = path;
	node->many = strcmp(type, "one_to_many") == 0;
	node->scalar = strcmp(variant, "scalar") == 0;
	rel = open_node(r, node->relid, path);
	node->order = order_of(rel);
	if (r->stored)
		stored_link(node, relationship, through_rel != NULL);
	else if (foreign_key != NULL)
	{
		node->up = strings_field(foreign_key, path, "child");
		node->down = strings_field(foreign_key, path, "parent");
		node->why = "by the columns given";
	}
	else
		find_link(node, through_rel ? through_rel : parent_rel, rel, through_rel ? -1 : 0);
	check_link(node, through_rel ? through_rel : parent_rel, rel);
	node->unique = has_index(node->relid, node->up, true) &&
		(through_rel == NULL || has_index(parent->relid, parent->up, true));

	rename = read_transform(r, jc, path);
	read_columns(r, node, rel, jc, rename);
	if (++r->depth > MAX_DEPTH)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("the document is nested deeper than %d levels", MAX_DEPTH)));
	read_children(r, node, rel, jc, rename);
	r->depth--;
	if (node->scalar && (list_length(node->columns) != 1 || node->children != NIL))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s is scalar and has %d columns and %d children", path,
						list_length(node->columns), list_length(node->children)),
				 errhint("A scalar has one column, listed in \"columns\", and no children.")));
	if (node->scalar && node->many &&
		OidIsValid(get_element_type(getBaseType(((DocColumn *) linitial(node->columns))->typid))))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("%s is an array of scalars, and its column one of arrays", path),
				 errhint("Use \"variant\": \"object\".")));
	check_labels(node);
	document_target_type(node);
	r->nfields++;
	if (through_rel != NULL)
		relation_close(through_rel, NoLock);
	relation_close(rel, NoLock);
}

static void
read_children(Resolver *r, DocNode *node, Relation rel, JsonbContainer *jc, JsonbContainer *rename)
{
	JsonbContainer *children = array_field(jc, node->path, "children");

	for (uint32 i = 0; children != NULL && i < JsonContainerSize(children); i++)
	{
		JsonbValue *v = getIthJsonbValueFromContainer(children, i);

		if (v->type != jbvBinary || !JsonContainerIsObject(v->val.binary.data))
			bad_field(node->path, "children", "an array of objects");
		read_child(r, node, rel, v->val.binary.data, rename);
	}
}

/* all that its one owner may read: the query runs as he */
static void
check_owners(const Document *doc, Relation root)
{
	for (int i = 1; i < doc->nnodes; i++)
	{
		HeapTuple	tup = SearchSysCache1(RELOID, ObjectIdGetDatum(doc->nodes[i]->relid));
		bool		same = HeapTupleIsValid(tup) &&
			((Form_pg_class) GETSTRUCT(tup))->relowner == root->rd_rel->relowner;

		if (HeapTupleIsValid(tup))
			ReleaseSysCache(tup);
		if (!same)
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("the table of %s has another owner than \"%s\"", doc->nodes[i]->path,
							RelationGetRelationName(root)),
					 errhint("A document is read as the owner of its root, to whom all of its tables have to belong.")));
	}
}

Document *
document_resolve(Relation root, MirrorSpec *spec, JsonbContainer *jc, List *relids, bool warn)
{
	static const char *const known[] = {"table", "schema", "columns", "label", "children", "transform"};
	static const char *const later[] = {"relationship", "primary_key", "base_tables", "where", "order_by", "limit",
	"aggregate", "flatten", "types", "null_when_empty"};
	Document   *doc = palloc0(sizeof(Document));
	JsonbContainer *rename;
	Resolver	r;
	char	   *label;
	ListCell   *lc;

	memset(&r, 0, sizeof(r));
	r.doc = doc;
	r.warn = warn;
	r.stored = relids != NIL;
	r.relids = relids;
	r.next_relid = r.stored ? list_head(relids) : NULL;
	if (r.stored)
		r.next_relid = lnext(relids, r.next_relid);

	doc->root = new_node(&r, NULL, RelationGetRelid(root));
	label = string_field(jc, "the root", "label");
	doc->root->label = label ? label : pstrdup(RelationGetRelationName(root));
	doc->root->path = doc->root->label;
	check_keys(jc, doc->root->path, known, lengthof(known), later, lengthof(later), NODE_KEYS);
	rename = read_transform(&r, jc, doc->root->path);
	read_columns(&r, doc->root, root, jc, rename);
	read_children(&r, doc->root, root, jc, rename);
	check_labels(doc->root);
	if (r.nfields > MAX_FIELDS)
		ereport(ERROR,
				(errcode(ERRCODE_TOO_MANY_COLUMNS),
				 errmsg("the document has %d fields, the target takes %d", r.nfields, MAX_FIELDS),
				 errhint("List the columns that are wanted in \"columns\".")));

	doc->nnodes = list_length(r.nodes);
	doc->nodes = palloc(sizeof(DocNode *) * doc->nnodes);
	foreach(lc, r.nodes)
	{
		doc->nodes[foreach_current_index(lc)] = lfirst(lc);
		doc->relids = list_append_unique_oid(doc->relids, ((DocNode *) lfirst(lc))->relid);
	}
	check_owners(doc, root);
	return doc;
}

/* ---------------------------------------------------------------------------
 * What its triggers queue
 * ------------------------------------------------------------------------ */

static void
add_used(DocLink *link, List *names)
{
	ListCell   *lc;

	foreach(lc, names)
	{
		if (!has_name(link->used, lfirst(lc)))
			link->used = lappend(link->used, lfirst(lc));
	}
}

static void
link_node(Document *doc, DocNode *node, List *up, List *more_used)
{
	DocLink    *link = NULL;
	ListCell   *lc;

	foreach(lc, doc->links)
	{
		DocLink    *l = lfirst(lc);

		if (l->relid == node->relid && same_names(l->up, up))
			link = l;
	}
	if (link == NULL)
	{
		link = palloc0(sizeof(DocLink));
		link->relid = node->relid;
		link->up = up;
		doc->links = lappend(doc->links, link);
	}
	link->nodes = lappend(link->nodes, node);
	link->all_columns |= node->all_columns && !node->through;
	add_used(link, up);
	add_used(link, node->order);
	add_used(link, more_used);
	if (!node->through)
	{
		foreach(lc, node->columns)
			add_used(link, list_make1(((DocColumn *) lfirst(lc))->name));
	}
	foreach(lc, node->children)
		add_used(link, ((DocNode *) lfirst(lc))->down);
}

void
document_links(Document *doc, const MirrorSpec *spec, List *key, List *more_used)
{
	ListCell   *lc;

	doc->links = NIL;
	link_node(doc, doc->root, key, more_used);
	for (int i = 1; i < doc->nnodes; i++)
		link_node(doc, doc->nodes[i], doc->nodes[i]->up, NIL);

	foreach(lc, doc->links)
	{
		DocLink    *link = lfirst(lc);
		Relation	rel = relation_open(link->relid, AccessShareLock);
		char	  **names = palloc(sizeof(char *) * list_length(link->up));
		ListCell   *ln;

		foreach(ln, link->up)
			names[foreach_current_index(ln)] = lfirst(ln);
		if (!key_layout(RelationGetDescr(rel), list_length(link->up), names, &link->layout))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("values of columns (%s) of \"%s\" cannot be queued", name_list(link->up),
							RelationGetRelationName(rel))));
		link->layout.link = true;
		relation_close(rel, NoLock);

		/* an empty name cannot be a column's: see capture.c */
		link->args = lcons("", list_copy(link->up));
		if (linitial(link->nodes) == doc->root)
			link->args = lcons("", link->args);
		if (link->all_columns)
			link->used = NIL;
		else
			link->args = list_concat(lappend(link->args, ""), link->used);
	}
	document_name_triggers(doc, spec->mirror_id);
}

DocLink *
document_has_link(const Document *doc, Oid relid, int32 layout)
{
	ListCell   *lc;

	foreach(lc, doc->links)
	{
		DocLink    *link = lfirst(lc);

		if (link->relid == relid && link->layout.id == layout)
			return link;
	}
	return NULL;
}

List *
document_triggers(const Document *doc, Oid relid)
{
	List	   *triggers = NIL;
	ListCell   *lc;

	foreach(lc, doc->links)
	{
		DocLink    *link = lfirst(lc);
		LinkTriggers *t = palloc0(sizeof(LinkTriggers));

		if (OidIsValid(relid) && link->relid != relid)
			continue;
		t->relid = link->relid;
		t->name = link->trigger;
		t->truncate_name = link->truncate_trigger;
		t->args = link->args;
		triggers = lappend(triggers, t);
	}
	return triggers;
}

void
document_name_triggers(Document *doc, int mirror_id)
{
	ListCell   *lc;

	foreach(lc, doc->links)
	{
		DocLink    *link = lfirst(lc);

		link->trigger = psprintf(CS_LINK_TRIGGER "%d_%d", mirror_id, foreach_current_index(lc));
		link->truncate_trigger = psprintf("%s_truncate", link->trigger);
	}
}

/* up: to find its rows for a document; else: to find documents for its rows */
char *
document_missing_index(const DocNode *node, bool up)
{
	Oid			relid = up ? node->relid : node->parent->relid;
	List	   *columns = up ? node->up : node->down;

	if (document_has_index(relid, columns))
		return NULL;
	return psprintf("CREATE INDEX ON %s (%s);",
					quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)), get_rel_name(relid)),
					name_list(columns));
}

/* ---------------------------------------------------------------------------
 * What is stored
 * ------------------------------------------------------------------------ */

static void
append_string(StringInfo buf, const char *name, const char *value)
{
	if (buf->data[buf->len - 1] != '{')
		appendStringInfoChar(buf, ',');
	escape_json(buf, name);
	appendStringInfoChar(buf, ':');
	escape_json(buf, value);
}

static void
append_strings(StringInfo buf, const char *name, List *values)
{
	ListCell   *lc;

	if (buf->data[buf->len - 1] != '{')
		appendStringInfoChar(buf, ',');
	escape_json(buf, name);
	appendStringInfoString(buf, ":[");
	foreach(lc, values)
	{
		if (foreach_current_index(lc) > 0)
			appendStringInfoChar(buf, ',');
		escape_json(buf, lfirst(lc));
	}
	appendStringInfoChar(buf, ']');
}

static void
append_node(StringInfo buf, const DocNode *node, const DocNode *through)
{
	bool		any = false;
	ListCell   *lc;

	appendStringInfoChar(buf, '{');
	append_string(buf, "table", get_rel_name(node->relid));
	append_string(buf, "schema", get_namespace_name(get_rel_namespace(node->relid)));
	append_string(buf, "label", node->label);
	if (!node->all_columns)
	{
		List	   *names = NIL;

		foreach(lc, node->columns)
			names = lappend(names, ((DocColumn *) lfirst(lc))->name);
		append_strings(buf, "columns", names);
	}
	foreach(lc, node->columns)
	{
		DocColumn  *col = lfirst(lc);

		if (strcmp(col->key, col->name) == 0)
			continue;
		if (!any)
			appendStringInfoString(buf, ",\"transform\":{\"rename\":{");
		any = true;
		append_string(buf, col->name, col->key);
	}
	if (any)
		appendStringInfoString(buf, "}}");
	if (node->parent != NULL)
	{
		appendStringInfoString(buf, ",\"relationship\":{");
		append_string(buf, "type", node->many ? "one_to_many" : "one_to_one");
		append_string(buf, "variant", node->scalar ? "scalar" : "object");
		if (through != NULL)
			append_strings(buf, "through_tables", list_make1(get_rel_name(through->relid)));
		appendStringInfoString(buf, ",\"links\":[");
		for (const DocNode *n = through ? through : node;; n = node)
		{
			appendStringInfoChar(buf, '{');
			append_strings(buf, "parent", n->down);
			append_strings(buf, "child", n->up);
			appendStringInfoChar(buf, '}');
			if (n == node)
				break;
			appendStringInfoChar(buf, ',');
		}
		appendStringInfoString(buf, "]}");
	}
	if (node->children != NIL)
	{
		appendStringInfoString(buf, ",\"children\":[");
		foreach(lc, node->children)
		{
			DocNode    *child = lfirst(lc);

			if (foreach_current_index(lc) > 0)
				appendStringInfoChar(buf, ',');
			if (child->through)
				append_node(buf, linitial(child->children), child);
			else
				append_node(buf, child, NULL);
		}
		appendStringInfoChar(buf, ']');
	}
	appendStringInfoChar(buf, '}');
}

Jsonb *
document_canonical(const Document *doc)
{
	StringInfoData buf;

	initStringInfo(&buf);
	append_node(&buf, doc->root, NULL);
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(buf.data)));
}

List *
document_node_relids(const Document *doc)
{
	List	   *relids = NIL;

	for (int i = 0; i < doc->nnodes; i++)
		relids = lappend_oid(relids, doc->nodes[i]->relid);
	return relids;
}
