/*-------------------------------------------------------------------------
 *
 * open.c
 *		Which implementation a setting names.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "target/target.h"

static const TargetOps *all_ops[2];
static int	n_ops = 0;

void
target_register(const TargetOps *ops)
{
	Assert(n_ops < lengthof(all_ops));
	all_ops[n_ops++] = ops;
}

/*
 * Which implementation a setting names.  Nothing is raised, so that a check
 * hook may call it; *errmsg never repeats the value, which may hold a
 * password that belongs elsewhere.
 */
const TargetOps *
target_ops_for(const char *conf, char **errmsg)
{
	*errmsg = NULL;
	if (conf == NULL || conf[strspn(conf, " \t")] == '\0')
		return NULL;
	for (int i = 0; i < n_ops; i++)
	{
		if (all_ops[i]->takes(conf, errmsg))
			return all_ops[i];
		if (*errmsg != NULL)
			return NULL;
	}
	return NULL;
}
