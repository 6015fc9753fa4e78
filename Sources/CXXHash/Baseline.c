// XXH3 for the baseline instruction set of the target (SSE2 on x86-64, NEON on arm64).
#include "CXXHash.h"
#define XXH_INLINE_ALL
#include "xxhash.h"

uint64_t kv_hash_baseline(const void *bytes, size_t length);
uint64_t kv_hash_baseline(const void *bytes, size_t length) { return XXH3_64bits(bytes, length); }
