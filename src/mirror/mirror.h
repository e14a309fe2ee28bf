/*-------------------------------------------------------------------------
 *
 * mirror.h
 *		The description of one mirrored table, made from the catalog.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_MIRROR_H
#define CRATE_SYNC_MIRROR_H

#include "base/base.h"
#include "mirror/types.h"
#include "nodes/pg_list.h"
#include "target/target.h"
#include "utils/array.h"
#include "utils/jsonb.h"
#include "utils/rel.h"

/* what a target table is called while it is rebuilt; no other may be */
#define REBUILD_SUFFIX "__crate_sync_new"

typedef struct MirrorColumn
{
	char	   *name;			/* in the source */
	AttrNumber	attnum;			/* of the mirrored relation itself; 0: a document's nested one */
	Oid			typid;
	int32		typmod;
	TypeMapping map;
	struct DocNode *node;		/* or NULL: a column of the relation */
} MirrorColumn;

/* a column of the target that is none of the relation's: see document/ */
typedef struct NestedColumn
{
	char	   *name;
	Oid			typid;			/* of what is read */
	char	   *type;			/* in the target */
	char	   *storage;
	CellKind	kind;
	int			nmembers;
	TargetColumn *members;
	struct DocNode *node;
} NestedColumn;

/* what the user asked for: a row of crate_sync.mirror, or add_table's arguments */
typedef struct MirrorSpec
{
	int			mirror_id;
	Oid			relid;
	char	   *target_schema;
	char	   *target_table;
	List	   *key_columns;	/* of char *; NIL: find out */
	List	   *columns;		/* of char *; NIL: all */
	char	   *row_filter;		/* or NULL */
	char	   *soft_delete_column; /* or NULL */
	Jsonb	   *options;		/* or NULL */
	bool		paused;
	int			resync_no;
	char	   *resync_mode;
	char	   *resync_filter;
	int			verify_no;
	bool		verify_repair;
	bool		follow_name;	/* whatever table has the name, not that one table */
	char	   *source_schema;	/* the name it was added by; NULL: not known */
	char	   *source_name;
	Oid			source_owner;	/* then */
	Jsonb	   *definition;		/* of a document; NULL: the relation as it is */
	List	   *nested;			/* of NestedColumn *: behind the relation's columns */
	List	   *target_names;	/* of char *: of columns, in the target; NIL: the same */
	List	   *relations;		/* of Oid: of a stored definition's nodes */
} MirrorSpec;

/*
 * A mirrored table, resolved against the source's present definition.
 * columns[i] is described for the target by target.cols[i].
 */
typedef struct MirrorTable
{
	Oid			relid;
	char	   *schemaname;
	char	   *relname;
	Oid			owner;
	char		relkind;
	int			ncols;
	MirrorColumn *columns;
	int			nkeys;
	int		   *keys;			/* places in columns, in key order */
	AttrNumber	soft_delete_attnum; /* 0: none */
	Oid			soft_delete_type;
	char	   *row_filter;
	List	   *filter_functions;	/* of Oid: users' functions in it */
	struct Document *doc;		/* or NULL */
	TargetTable target;
} MirrorTable;

/*
 * Checks a spec against the source and resolves it; everything that can be
 * wrong with a table, its key, columns, filter, soft-delete column, options
 * and target name is an ereport(ERROR) here, with an errcode and, where the
 * user can act, a hint.  rel is open with at least AccessShareLock.  Result
 * lives in the current memory context.
 */
extern MirrorTable *mirror_resolve(Relation rel, MirrorSpec *spec);

/* is it a kind of relation whose rows our triggers see, and its owner all of them? */
extern void mirror_check_relation(Relation rel);

/* a name that is wanted for a column of the target */
extern void mirror_check_target_column(const char *source, const char *name);

/* the columns that identify a row of rel: primary key, else replica identity,
 * else the smallest unique index on NOT NULL columns; NIL if there is none.
 * List of char *. */
extern List *mirror_find_key(Relation rel);

/*
 * Checks a row filter and returns it in the form that is stored; palloc'd.
 * stored: it is in that form already.  functions: NULL, or where the OIDs of
 * users' functions in it are added to.
 */
extern char *mirror_check_filter(Relation rel, const char *filter, bool stored,
								 List **functions);

/*
 * Does reading a literal of this type run code of users'?  That of domains
 * does, by their checks, alone or within row, range or array types.
 */
extern bool mirror_input_runs_code(Oid typid);

/* the specs in the catalog: of one relation that is mirrored as it is, of one
 * mirror, or (InvalidOid) all: List of MirrorSpec *, in the current memory context */
extern List *mirror_load(Oid relid);
extern MirrorSpec *mirror_load_one(int mirror_id);	/* or NULL */

/* the key's columns of a table, List of char * */
extern List *mirror_key_names(const MirrorTable *table);

/*
 * Is the catalog as this library wants it?  The second one throws if not, with
 * the words that say what to do.
 */
#define CS_UPDATE_HINT "ALTER EXTENSION crate_sync UPDATE;"
extern bool mirror_catalog_is_current(void);
extern void mirror_check_catalog(void);

/* the relations in the catalog, of whatever version: List of Oid, ascending */
extern List *mirror_relids(void);

/* the elements of a name[], as List of char *; NULLs are an error */
extern List *mirror_name_list(ArrayType *array);

/* the elements of an oid[] */
extern List *mirror_oid_list(ArrayType *array);

#endif							/* CRATE_SYNC_MIRROR_H */
