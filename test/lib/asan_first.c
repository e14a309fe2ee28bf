/*
 * AddressSanitizer starts at the first malloc().  In a server that is a
 * library's constructor, inside of libc's gettext, which the sanitizer's start
 * calls too: a deadlock.  Linked with -z initfirst, this comes before all others.
 */
#include <stdlib.h>

__attribute__((constructor)) static void
asan_first(void)
{
	free(malloc(1));
}
