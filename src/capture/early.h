/*-------------------------------------------------------------------------
 *
 * early.h
 *		Rows handed to capture before PostgreSQL queues trigger events.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_EARLY_H
#define CRATE_SYNC_EARLY_H

/* sets the executor's hook; once per process, from _PG_init */
extern void early_init(void);

#endif							/* CRATE_SYNC_EARLY_H */
