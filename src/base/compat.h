/*-------------------------------------------------------------------------
 *
 * compat.h
 *		The one place that knows how PostgreSQL 14 to 18 differ.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_COMPAT_H
#define CRATE_SYNC_COMPAT_H

#if PG_VERSION_NUM < 140000 || PG_VERSION_NUM >= 190000
#error "crate_sync supports PostgreSQL 14 to 18"
#endif

#if PG_VERSION_NUM < 150000
#define MarkGUCPrefixReserved(prefix) EmitWarningsOnPlaceholders(prefix)
#endif

#if PG_VERSION_NUM < 150000
#include "funcapi.h"
static inline void
InitMaterializedSRF(FunctionCallInfo fcinfo, bits32 flags)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	MemoryContext old;
	TupleDesc	desc;

	if (rsinfo == NULL || !IsA(rsinfo, ReturnSetInfo) ||
		!(rsinfo->allowedModes & SFRM_Materialize))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("set-valued function called in context that cannot accept a set")));
	old = MemoryContextSwitchTo(rsinfo->econtext->ecxt_per_query_memory);
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	rsinfo->returnMode = SFRM_Materialize;
	rsinfo->setResult = tuplestore_begin_heap((rsinfo->allowedModes & SFRM_Materialize_Random) != 0,
											  false, work_mem);
	rsinfo->setDesc = desc;
	MemoryContextSwitchTo(old);
}
#endif

#if PG_VERSION_NUM < 160000
#define cs_table_owner_ok(relid, roleid) pg_class_ownercheck(relid, roleid)
#else
#define cs_table_owner_ok(relid, roleid) \
	object_ownercheck(RelationRelationId, relid, roleid)
#endif

#if PG_VERSION_NUM < 160000
#define cs_extension_owner_ok(extoid, roleid) pg_extension_ownercheck(extoid, roleid)
#else
#define cs_extension_owner_ok(extoid, roleid) \
	object_ownercheck(ExtensionRelationId, extoid, roleid)
#endif

#if PG_VERSION_NUM >= 180000 && !defined(pg_attribute_noreturn)
#define pg_attribute_noreturn() pg_noreturn
#endif

/* from 18 on, attnotnull is also set by a constraint that is not validated */
#if PG_VERSION_NUM < 180000
#define CS_ATT_NOT_NULL(desc, i) (TupleDescAttr(desc, i)->attnotnull)
#else
#define CS_ATT_NOT_NULL(desc, i) \
	(TupleDescCompactAttr(desc, i)->attnullability == ATTNULLABLE_VALID)
#endif

#if PG_VERSION_NUM < 170000
#define CS_CREATE_WAIT_EVENT_SET(n) CreateWaitEventSet(TopMemoryContext, n)
#else
#define CS_CREATE_WAIT_EVENT_SET(n) CreateWaitEventSet(NULL, n)
#endif

#if PG_VERSION_NUM < 160000
#define CS_RELFILENUMBER(rel) ((rel)->rd_node.relNode)
#else
#define CS_RELFILENUMBER(rel) ((rel)->rd_locator.relNumber)
#endif

/* a SELECT to its end, or until the receiver has enough */
#if PG_VERSION_NUM < 180000
#define CS_EXECUTOR_RUN(query) ExecutorRun(query, ForwardScanDirection, 0, true)
#else
#define CS_EXECUTOR_RUN(query) ExecutorRun(query, ForwardScanDirection, 0)
#endif

/* a lexer of UTF-8 that leaves escapes alone; palloc'd.  With common/jsonapi.h */
#if PG_VERSION_NUM < 170000
#define CS_JSON_LEXER(json, len) \
	makeJsonLexContextCstringLen(json, len, PG_UTF8, false)
#else
#define CS_JSON_LEXER(json, len) \
	makeJsonLexContextCstringLen(NULL, json, len, PG_UTF8, false)
#endif

/* pg_database.datconnlimit of one whose DROP was interrupted */
#ifdef DATCONNLIMIT_INVALID_DB
#define CS_INVALID_DATABASE DATCONNLIMIT_INVALID_DB
#else
#define CS_INVALID_DATABASE (-2)
#endif

#endif							/* CRATE_SYNC_COMPAT_H */
