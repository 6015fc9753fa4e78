// XXH3 for the baseline instruction set of the target (SSE2 on x86-64, NEON on arm64).
#include "CXXHash.h"
#define XXH_INLINE_ALL
#include "xxhash.h"

uint64_t kv_hash_baseline(const void *bytes, size_t length);
uint64_t kv_hash_baseline(const void *bytes, size_t length) { return XXH3_64bits(bytes, length); }

kv_xxh3_stream *kv_xxh3_stream_new(void) {
    XXH3_state_t *state = XXH3_createState();
    if (state != NULL) XXH3_64bits_reset(state);
    return (kv_xxh3_stream *)state;
}

void kv_xxh3_stream_add(kv_xxh3_stream *stream, const void *bytes, size_t length) {
    XXH3_64bits_update((XXH3_state_t *)stream, bytes, length);
}

uint64_t kv_xxh3_stream_value(const kv_xxh3_stream *stream) {
    return XXH3_64bits_digest((const XXH3_state_t *)stream);
}

void kv_xxh3_stream_free(kv_xxh3_stream *stream) { XXH3_freeState((XXH3_state_t *)stream); }
