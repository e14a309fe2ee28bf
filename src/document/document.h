/*-------------------------------------------------------------------------
 *
 * document.h
 *		A target row made of many tables: a tree of nodes, as PGSync's users
 *		write it, and the SQL that follows from it.
 *
 * The root's rows are the documents; each other node hangs on its parent by a
 * link, columns of its own (up) that equal columns of the parent's (down).  A
 * through table is a node, too, with one child and nothing shown.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_DOCUMENT_H
#define CRATE_SYNC_DOCUMENT_H

#include "base/base.h"
#include "queue/key.h"
#include "mirror/mirror.h"
#include "mirror/types.h"
#include "utils/jsonb.h"

/* a column shown */
typedef struct DocColumn
{
	char	   *name;			/* in the source */
	char	   *key;			/* in the target */
	Oid			typid;
	int32		typmod;
	TypeMapping map;
} DocColumn;

typedef struct DocNode DocNode;

struct DocNode
{
	int			no;				/* in Document.nodes */
	DocNode    *parent;			/* NULL: the root */
	Oid			relid;
	char	   *label;
	char	   *path;			/* labels from the root on, for messages */
	bool		through;		/* hidden: it only links its child to its parent */
	bool		many;			/* of what is shown, an array */
	bool		scalar;			/* of what is shown, the one column itself */
	List	   *up;				/* of char *: columns here, */
	List	   *down;			/* of the parent's that they equal, */
	List	   *equals;			/* by these operators, of Oid, down on the left */
	List	   *columns;		/* of DocColumn * */
	bool		all_columns;	/* those added later, too */
	List	   *children;		/* of DocNode * */
	List	   *order;			/* of char *: what tells its rows apart */
	bool		unique;			/* as a to-one: no parent has two */
	const char *why;			/* how the link was found, for preview */
	char	   *type;			/* of the target's column, but for the root */
	CellKind	kind;
	int			nmembers;		/* of an object */
	TargetColumn *members;
};

/*
 * What a relation's triggers queue for a document: for each row that changes
 * in a column of used (NIL: in any), the values of up.
 */
typedef struct DocLink
{
	Oid			relid;
	List	   *up;				/* of char * */
	List	   *used;			/* of char *; NIL: all */
	bool		all_columns;
	List	   *nodes;			/* of DocNode *: whose up it is */
	KeyLayout	layout;
	char	   *trigger;		/* their names */
	char	   *truncate_trigger;
	List	   *args;			/* of the triggers, of char * */
} DocLink;

typedef struct Document
{
	DocNode    *root;
	int			nnodes;
	DocNode   **nodes;			/* in the order of the definition */
	List	   *relids;			/* of Oid, each once */
	List	   *links;			/* of DocLink *; the root's key is the first */
} Document;

/* what a file of PGSync's says of one document beside its nodes */
typedef struct DocEntry
{
	JsonbContainer *nodes;
	char	   *database;
	char	   *index;
} DocEntry;

/* what a child shows: it, or what a through table leads to */
static inline DocNode *
document_shown(const DocNode *node)
{
	return node->through ? linitial(node->children) : unconstify(DocNode *, node);
}

/* ---- resolve.c ---- */

/* mirror_resolve() for mirrors of whatever kind */
extern MirrorTable *document_mirror(Relation rel, MirrorSpec *spec);

/* ---- spec.c ---- */

/* an entry of a file, or a node alone; says what of it is ignored, if told to */
extern void document_entry(JsonbContainer *jc, DocEntry *entry, bool warn);

/* a definition, which is a node: its root's relation and what it shows of that */
extern Oid	document_root(JsonbContainer *node);

/*
 * A definition against the tables as they are.  relids: those of its nodes,
 * as stored with it; NIL: it is new, and its tables are looked up by name.
 * Errors as of mirror_resolve.
 */
extern Document *document_resolve(Relation root, MirrorSpec *spec, JsonbContainer *node,
								  List *relids, bool warn);

/* links and their triggers' names, once the root's key is known */
extern void document_links(Document *doc, const MirrorSpec *spec, List *key, List *more_used);

/* the link with that layout of a relation, or NULL */
extern DocLink *document_has_link(const Document *doc, Oid relid, int32 layout);

/* of one of its relations, or all: List of LinkTriggers * */
extern List *document_triggers(const Document *doc, Oid relid);

/* once it is known which mirror it is */
extern void document_name_triggers(Document *doc, int mirror_id);

/* a statement that makes an index, if the node is without; NULL: it is not */
extern char *document_missing_index(const DocNode *node, bool up);

/* the definition with its links written out, so that nothing has to be guessed again */
extern Jsonb *document_canonical(const Document *doc);
extern List *document_node_relids(const Document *doc);

/* an index that finds rows by these columns, all of them in front */
extern bool document_has_index(Oid relid, List *columns);

/* ---- query.c ---- */

/* how a child of the root is read, the root being called alias */
extern void document_append_column(StringInfo buf, const DocNode *node, const char *alias);

/*
 * Root keys by values of a node's up: SELECT ... FROM from AS alias ... WHERE,
 * with a parameter, an array, for each.  condition: more of it, or NULL.
 */
extern void document_append_walk(StringInfo buf, const DocNode *node, const char *from,
								 const char *condition, List *key);

/* does the node's up hold the root's key?  place: of each key column in it */
extern bool document_is_identity(const Document *doc, const DocNode *node, List *key, int *place);

/* names of its relations as they are now; NULL: one is gone */
extern char *document_names(const Document *doc);

/* the whole query, to be looked at */
extern char *document_query(const MirrorTable *table);

/* ---- encode.c ---- */

extern void document_encoder(const DocNode *node, CellEncoder *enc);
extern void document_target_type(DocNode *node);
/* of what the query gives for it */
extern Oid	document_column_type(const DocNode *node);

#endif							/* CRATE_SYNC_DOCUMENT_H */
