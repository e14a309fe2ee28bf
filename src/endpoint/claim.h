/*-------------------------------------------------------------------------
 *
 * claim.h
 *		One live writer per target table.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_CLAIM_H
#define CRATE_SYNC_CLAIM_H

#include "pipeline/table.h"

typedef enum ClaimVerdict
{
	CLAIM_OURS,					/* write */
	CLAIM_OURS_AGAIN,			/* write, after looking at every row: the target is
								 * not what we left, or another one has written it */
	CLAIM_WAIT,					/* not known yet: ask again later */
	CLAIM_FOREIGN,				/* another database's: write nothing */
	CLAIM_TROUBLE				/* could not be found out: see res */
} ClaimVerdict;

/* at the worker's start, in a transaction */
extern void claim_init(void);

/* has a worker of this database been at work before us? */
extern bool claim_is_successor(void);

/* another target, or the same one anew: nothing is known of it */
extern void claim_forget(void);

/*
 * May this table be written?  Claims it if it is free.  In case of
 * CLAIM_FOREIGN, *who and *hint (palloc'd) say whose it is, and what to do.
 */
extern ClaimVerdict claim_table(SyncTable *st, char **who, char **hint, TargetResult *res);

/* as far as can be seen now, it is another's, or was written from another place */
extern bool claim_is_anothers(SyncTable *st);

/* asked after the table's fence was raised */
extern bool claim_is_still_ours(SyncTable *st);

/* names this writer; the same for its whole life */
extern const char *claim_token(void);

/* is it another's?  No claim at all is nobody's */
extern void claim_look(const char *schema, const char *name, bool *foreign, TargetResult *res);

/* gives a claim back, if it is ours */
extern void claim_release(const char *schema, const char *name, TargetResult *res);

/* the last table is removed: nothing shows any more that we were here */
extern void claim_leave(TargetResult *res);

/* shows that we are alive, every few seconds: then true; call outside of transactions */
extern bool claim_heartbeat(void);

/* adopt() was called and not yet carried out: claims are taken whoever has them */
extern void claim_adopt(int adopt_no);
extern bool claim_adopting(void);
extern void claim_adopted(void);

#endif							/* CRATE_SYNC_CLAIM_H */
