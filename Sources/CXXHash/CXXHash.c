#include "CXXHash.h"

// The header-only form: everything is compiled into this file, once for each vector width below.
#if defined(__x86_64__)
#define XXH_INLINE_ALL
#define XXH_NO_STREAM
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#define XXH_VECTOR 2 /* XXH_AVX2 */
#include <immintrin.h>
#include "xxhash.h"
static uint64_t kv_hash_avx2(const void *bytes, size_t length) { return XXH3_64bits(bytes, length); }
#pragma clang attribute pop

uint64_t kv_hash_baseline(const void *bytes, size_t length);

uint64_t kv_xxh3_64(const void *bytes, size_t length) {
    static int wide = -1; // Every thread computes the same value, so a race on it changes nothing.
    int known = __atomic_load_n(&wide, __ATOMIC_RELAXED);
    if (known < 0) {
        __builtin_cpu_init();
        known = __builtin_cpu_supports("avx2") ? 1 : 0;
        __atomic_store_n(&wide, known, __ATOMIC_RELAXED);
    }
    return known ? kv_hash_avx2(bytes, length) : kv_hash_baseline(bytes, length);
}
#else
uint64_t kv_hash_baseline(const void *bytes, size_t length);
uint64_t kv_xxh3_64(const void *bytes, size_t length) { return kv_hash_baseline(bytes, length); }
#endif
