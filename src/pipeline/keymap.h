/*-------------------------------------------------------------------------
 *
 * keymap.h
 *		A map from the hash of a key's cells to a number.
 *
 * Two keys may have one hash: whoever finds an entry compares the keys.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_KEYMAP_H
#define CRATE_SYNC_KEYMAP_H

#include "common/hashfn.h"

typedef struct KeyMapEntry
{
	uint64		hash;
	uint32		value;
	char		status;			/* simplehash's own */
} KeyMapEntry;

#define SH_PREFIX keymap
#define SH_ELEMENT_TYPE KeyMapEntry
#define SH_KEY_TYPE uint64
#define SH_KEY hash
#define SH_HASH_KEY(tb, key) ((uint32) (key))
#define SH_EQUAL(tb, a, b) ((a) == (b))
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

static inline uint64
key_hash(const char *key, int len)
{
	return hash_bytes_extended((const unsigned char *) key, len, 0);
}

#endif							/* CRATE_SYNC_KEYMAP_H */
