/*
 * Put before every source that is built with AddressSanitizer.
 *
 * PostgreSQL carves small pieces of memory out of large blocks, in which the
 * sanitizer sees neither a piece's end nor that it is free.  Memory contexts
 * made with these sizes get all but the smallest pieces from malloc, one by
 * one.
 */
#include "postgres.h"
#include "utils/memutils.h"

#undef ALLOCSET_DEFAULT_INITSIZE
#undef ALLOCSET_DEFAULT_MAXSIZE
#undef ALLOCSET_SMALL_INITSIZE
#undef ALLOCSET_SMALL_MAXSIZE

/* not core's sizes: it keeps contexts of those for reuse as they are */
#define ALLOCSET_DEFAULT_INITSIZE 2048
#define ALLOCSET_SMALL_INITSIZE 2048
#ifdef USE_ASSERT_CHECKING
#define ALLOCSET_DEFAULT_MAXSIZE 2048
#define ALLOCSET_SMALL_MAXSIZE 2048
#else
#define ALLOCSET_DEFAULT_MAXSIZE 256
#define ALLOCSET_SMALL_MAXSIZE 256
#endif
