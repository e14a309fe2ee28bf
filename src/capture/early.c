/*-------------------------------------------------------------------------
 *
 * early.c
 *		Rows handed to capture before PostgreSQL queues trigger events.
 *
 * An AFTER ROW trigger's event is queued, and at the statement's end the row
 * is fetched once more for the trigger's function: that costs several times
 * what noting the key does.  But a trigger's WHEN condition is evaluated when
 * the event would be queued, with the row at hand, after all BEFORE triggers,
 * and an event whose condition is false is not queued.  So the executor's copy
 * of our trigger gets a condition: it takes the key and is false.
 *
 * A condition in the catalog would do, too, but is parsed and planned anew by
 * each statement, which for one row costs as much as it saves.
 *
 * It is the executor's copy alone that is changed.  Whatever comes another
 * way (COPY, logical replication, partitions that rows are routed to, a
 * session that has not met the trigger yet) fires the trigger as it is.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "base/settings.h"
#include "capture/capture.h"
#include "capture/early.h"
#include "catalog/pg_trigger.h"
#include "executor/executor.h"
#include "nodes/execnodes.h"

typedef struct EarlyState
{
	ExprState	state;			/* has to come first */
	Relation	rel;
	Trigger    *trigger;
	CaptureRel *entry;
} EarlyState;

static ExecutorStart_hook_type prev_ExecutorStart = NULL;

/* in tgqual's place: never read, as what it would become is there already */
static char no_text[] = "";

/* an ExprStateEvalFunc; the slots are as TriggerEnabled() sets them */
static Datum
take_row(ExprState *state, ExprContext *econtext, bool *isnull)
{
	EarlyState *early = (EarlyState *) state;
	TupleTableSlot *before = econtext->ecxt_innertuple;
	TupleTableSlot *after = econtext->ecxt_outertuple;

	if (cs_capture)
	{
		if (TupIsNull(before))
			early->entry = capture_row(early->entry, early->rel, early->trigger, after, NULL);
		else
			early->entry = capture_row(early->entry, early->rel, early->trigger, before,
									   TupIsNull(after) ? NULL : after);
	}
	*isnull = false;
	return BoolGetDatum(false);
}

static bool
is_ours(const Trigger *trigger)
{
	return trigger->tgfoid == capture_fnoid &&
		TRIGGER_TYPE_MATCHES(trigger->tgtype, TRIGGER_TYPE_ROW, TRIGGER_TYPE_AFTER, 0) &&
		trigger->tgqual == NULL && !trigger->tgdeferrable;
}

static void
early_executor_start(QueryDesc *query, int eflags)
{
	ListCell   *lc;

	if (prev_ExecutorStart)
		prev_ExecutorStart(query, eflags);
	else
		standard_ExecutorStart(query, eflags);

	if (likely(query->estate->es_opened_result_relations == NIL) || !OidIsValid(capture_fnoid))
		return;
	foreach(lc, query->estate->es_opened_result_relations)
	{
		ResultRelInfo *info = lfirst(lc);
		MemoryContext oldcxt;

		/* a partitioned table's own trigger sees rows that its partitions' see */
		if (info->ri_TrigDesc == NULL || info->ri_RelationDesc->rd_rel->relkind != RELKIND_RELATION)
			continue;
		oldcxt = MemoryContextSwitchTo(query->estate->es_query_cxt);
		for (int i = 0; i < info->ri_TrigDesc->numtriggers; i++)
		{
			Trigger    *trigger = &info->ri_TrigDesc->triggers[i];
			EarlyState *early;

			if (!is_ours(trigger))
				continue;
			early = palloc0(sizeof(EarlyState));
			NodeSetTag(&early->state, T_ExprState);
			early->state.flags = EEO_FLAG_IS_QUAL;
			early->state.evalfunc = take_row;
			early->rel = info->ri_RelationDesc;
			early->trigger = trigger;
			trigger->tgqual = no_text;
			info->ri_TrigWhenExprs[i] = &early->state;
		}
		MemoryContextSwitchTo(oldcxt);
	}
}

void
early_init(void)
{
	prev_ExecutorStart = ExecutorStart_hook;
	ExecutorStart_hook = early_executor_start;
}
