/*-------------------------------------------------------------------------
 *
 * triggers.c
 *		Our triggers on mirrored tables: made, mended, dropped.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "access/relation.h"
#include "base/xact.h"
#include "capture/triggers.h"
#include "catalog/dependency.h"
#include "catalog/objectaddress.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "nodes/parsenodes.h"
#include "parser/parse_func.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

/* ms for which the worker waits for locks on a table that is never without a writer */
#define PATIENCE_MS 100

Oid
triggers_function(void)
{
	return LookupFuncName(list_make2(makeString(CS_SCHEMA), makeString("capture")),
						  0, NULL, false);
}

/* is there such a trigger, ours and for this key?  *always: ENABLE ALWAYS */
static bool
has_trigger(Relation rel, const char *name, List *key, bool *exists, bool *always)
{
	Oid			funcid = triggers_function();
	TriggerDesc *desc = rel->trigdesc;

	*exists = *always = false;
	for (int i = 0; desc != NULL && i < desc->numtriggers; i++)
	{
		Trigger    *trigger = &desc->triggers[i];
		ListCell   *lc;
		int			arg = 0;

		if (strcmp(trigger->tgname, name) != 0)
			continue;
		*exists = true;
		*always = trigger->tgenabled == TRIGGER_FIRES_ALWAYS;
		if (trigger->tgfoid != funcid || trigger->tgnargs != list_length(key))
			return false;
		foreach(lc, key)
		{
			if (strcmp(trigger->tgargs[arg++], lfirst(lc)) != 0)
				return false;
		}
		return true;
	}
	return false;
}

/* the worker's: writers queue behind its request for a lock, and not for long; 0: whoever waits */
static TimestampTz patience_until = 0;

bool
triggers_lock(List *members, LOCKMODE lockmode, bool wait)
{
	ListCell   *lc;

	foreach(lc, members)
	{
		if (ConditionalLockRelationOid(lfirst_oid(lc), lockmode))
			continue;
		if (!wait)
			return false;
		if (patience_until != 0)
		{
			long		ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), patience_until);

			if (ms <= 0)
				return false;
			LockTimeout = (int) ms;
		}
		LockRelationOid(lfirst_oid(lc), lockmode);
	}
	return true;
}

/*
 * Mends one trigger of one member of a tree of partitions; returns whether it
 * did.  create: the trigger is the member's own; else it is a clone, which
 * comes and goes with the root's, and can only be disabled.
 */
static bool
ensure_trigger(Oid relid, List *tree, const char *name, const char *event, List *key,
			   bool create, bool wait)
{
	bool		row = strcmp(event, "TRUNCATE") != 0;
	List	   *members = row && create ? tree : list_make1_oid(relid);
	char	   *table;
	Relation	rel;
	bool		exists = false;
	bool		always = false;
	bool		good = false;

	/* a look first: a lock that is not needed would only be in writers' way */
	for (int pass = 0; pass < 2; pass++)
	{
		LOCKMODE	lockmode = pass == 0 ? AccessShareLock :
			!good && exists && create ? AccessExclusiveLock : ShareRowExclusiveLock;

		if (!triggers_lock(pass == 0 ? list_make1_oid(relid) : members, lockmode, wait))
			return false;
		rel = try_relation_open(relid, NoLock);
		if (rel == NULL)
			return false;
		good = has_trigger(rel, name, key, &exists, &always);
		relation_close(rel, NoLock);
		if ((good && always) || (!exists && !create))
			return false;
	}

	table = qualified_name(relid);
	if (!good && create)
	{
		StringInfoData args;
		ObjectAddress trigger;
		ObjectAddress extension;
		ListCell   *lc;

		if (exists)
			run_utility(psprintf("DROP TRIGGER %s ON %s", name, table));
		initStringInfo(&args);
		foreach(lc, key)
			appendStringInfo(&args, "%s%s", args.len > 0 ? ", " : "",
							 quote_literal_cstr(lfirst(lc)));
		run_utility(psprintf("CREATE TRIGGER %s AFTER %s ON %s FOR EACH %s"
							 " EXECUTE FUNCTION " CS_SCHEMA ".capture(%s)",
							 name, event, table, row ? "ROW" : "STATEMENT", args.data));

		/*
		 * Without this DROP EXTENSION would be refused for the trigger's
		 * sake.  ALTER TRIGGER ... DEPENDS ON EXTENSION does the same, but
		 * under a lock that keeps readers out.
		 */
		ObjectAddressSet(trigger, TriggerRelationId, get_trigger_oid(relid, name, false));
		ObjectAddressSet(extension, ExtensionRelationId, get_extension_oid("crate_sync", false));
		recordDependencyOn(&trigger, &extension, DEPENDENCY_AUTO_EXTENSION);
	}

	/* logical replication's apply has to be mirrored too */
	run_utility(psprintf("ALTER TABLE ONLY %s ENABLE ALWAYS TRIGGER %s", table, name));
	return true;
}

/*
 * Runs nothing of the owner's, though as a superuser: CREATE TRIGGER evaluates
 * no expression of the table but functions of constants in partition keys, and
 * no member of this tree has an expression there, as PostgreSQL has no key for
 * such a table, nor for one that it is to be a part of; a document's tables are
 * looked at for that.
 */
static bool
ensure_named(Oid relid, const char *name, const char *truncate_name, List *key, bool wait)
{
	List	   *tree = find_all_inheritors(relid, NoLock, NULL);
	bool		changed = false;
	ListCell   *lc;

	SPI_connect();
	/* the row trigger is cloned to partitions; one on TRUNCATE is not */
	foreach(lc, tree)
	{
		Oid			member = lfirst_oid(lc);

		changed |= ensure_trigger(member, tree, name, "INSERT OR UPDATE OR DELETE",
								  key, member == relid, wait);
		changed |= ensure_trigger(member, tree, truncate_name, "TRUNCATE", key, true, wait);
	}
	SPI_finish();
	return changed;
}

bool
triggers_ensure(Oid relid, List *key, bool wait)
{
	return ensure_named(relid, CS_TRIGGER, CS_TRUNCATE_TRIGGER, key, wait);
}

bool
triggers_ensure_links(List *links)
{
	bool		changed = false;
	ListCell   *lc;

	foreach(lc, links)
	{
		LinkTriggers *link = lfirst(lc);

		changed |= ensure_named(link->relid, link->name, link->truncate_name, link->args, true);
	}
	return changed;
}

bool
triggers_fit(List *links)
{
	bool		fit = true;
	ListCell   *lc;

	foreach(lc, links)
	{
		LinkTriggers *link = lfirst(lc);
		Relation	rel = relation_open(link->relid, AccessShareLock);
		bool		exists;
		bool		always;

		fit = fit && has_trigger(rel, link->name, link->args, &exists, &always) &&
			has_trigger(rel, link->truncate_name, link->args, &exists, &always);
		relation_close(rel, NoLock);
	}
	return fit;
}

static bool
mend_patiently(Oid relid, List *key_columns, List *links)
{
	int			lock_timeout = LockTimeout;
	volatile bool changed = false;

	patience_until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), PATIENCE_MS);
	PG_TRY();
	{
		changed = links != NIL ? triggers_ensure_links(links) : triggers_ensure(relid, key_columns, true);
	}
	PG_FINALLY();
	{
		LockTimeout = lock_timeout;
		patience_until = 0;
	}
	PG_END_TRY();
	return changed;
}

bool
triggers_mend(Oid relid, List *key_columns)
{
	return mend_patiently(relid, key_columns, NIL);
}

bool
triggers_mend_links(List *links)
{
	return mend_patiently(InvalidOid, NIL, links);
}

/* appends DROP TRIGGER commands for the relids and names that SPI has found */
static List *
drop_commands(List *commands, MemoryContext cxt, bool wait)
{
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tup = SPI_tuptable->vals[i];
		char	   *name = SPI_getvalue(tup, SPI_tuptable->tupdesc, 2);
		bool		isnull;
		Oid			relid = DatumGetObjectId(SPI_getbinval(tup, SPI_tuptable->tupdesc, 1, &isnull));
		MemoryContext old = MemoryContextSwitchTo(cxt);

		if (triggers_lock(list_make1_oid(relid), AccessExclusiveLock, wait) &&
			SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relid)) &&
			OidIsValid(get_trigger_oid(relid, name, true)))
			commands = lappend(commands, psprintf("DROP TRIGGER %s ON %s", quote_identifier(name),
												  qualified_name(relid)));
		MemoryContextSwitchTo(old);
	}
	return commands;
}

/*
 * Takes all triggers of ours off a table and its partitions; and off tables
 * that were partitions of some table once: DETACH took the clone of the row
 * trigger away and left the one on TRUNCATE, which nobody needs.
 */
void
triggers_drop(Oid relid)
{
	List	   *tree = find_all_inheritors(relid, AccessExclusiveLock, NULL);
	MemoryContext cxt = CurrentMemoryContext;
	Oid			types[] = {OIDOID, OIDOID};
	Datum		args[] = {ObjectIdGetDatum(triggers_function()), (Datum) 0};
	List	   *commands = NIL;
	ListCell   *lc;

	SPI_connect();
	foreach(lc, tree)
	{
		/* clones go with what they are clones of */
		args[1] = ObjectIdGetDatum(lfirst_oid(lc));
		run_sql("SELECT tgrelid, tgname FROM pg_catalog.pg_trigger"
				" WHERE tgfoid = $1 AND tgrelid = $2 AND tgparentid = 0"
				" AND NOT pg_catalog.starts_with(tgname::pg_catalog.text, '" CS_LINK_TRIGGER "')", 2, types, args, NULL);
		commands = drop_commands(commands, cxt, true);
	}
	foreach(lc, commands)
		run_utility(lfirst(lc));

	run_sql("SELECT t.tgrelid, t.tgname FROM pg_catalog.pg_trigger t"
			" WHERE t.tgfoid = $1 AND t.tgtype & 1 = 0"
			" AND NOT pg_catalog.starts_with(t.tgname::pg_catalog.text, '" CS_LINK_TRIGGER "')"
			" AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger r WHERE r.tgrelid = t.tgrelid"
			" AND r.tgfoid = t.tgfoid AND r.tgtype & 1 = 1)", 1, types, args, NULL);
	commands = drop_commands(NIL, cxt, false);
	foreach(lc, commands)
		run_utility(lfirst(lc));
	SPI_finish();
}

bool
triggers_drop_links(List *relids, const char *prefix, bool wait)
{
	MemoryContext cxt = CurrentMemoryContext;
	Oid			types[] = {OIDOID, OIDOID, TEXTOID};
	Datum		args[] = {ObjectIdGetDatum(triggers_function()), (Datum) 0, CStringGetTextDatum(prefix)};
	List	   *tree = NIL;
	List	   *commands = NIL;
	uint64		found = 0;
	ListCell   *lc;

	foreach(lc, relids)
	{
		if (SearchSysCacheExists1(RELOID, ObjectIdGetDatum(lfirst_oid(lc))))
			tree = list_concat_unique_oid(tree, find_all_inheritors(lfirst_oid(lc), NoLock, NULL));
	}
	list_sort(tree, list_oid_cmp);
	SPI_connect();
	foreach(lc, tree)
	{
		args[1] = ObjectIdGetDatum(lfirst_oid(lc));
		run_sql("SELECT tgrelid, tgname FROM pg_catalog.pg_trigger WHERE tgfoid = $1 AND tgrelid = $2"
				" AND tgparentid = 0 AND pg_catalog.starts_with(tgname::pg_catalog.text, $3)", 3, types, args, NULL);
		found += SPI_processed;
		commands = drop_commands(commands, cxt, wait);
	}
	foreach(lc, commands)
		run_utility(lfirst(lc));
	SPI_finish();
	return list_length(commands) == found;
}
