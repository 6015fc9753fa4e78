// XXH3 (https://github.com/Cyan4973/xxHash, BSD 2-Clause), compiled for the processor's widest vectors at run time.
#pragma once
#include <stddef.h>
#include <stdint.h>

/// XXH3-64 of `length` bytes at `bytes`; the same value on every processor.
uint64_t kv_xxh3_64(const void *bytes, size_t length);

/// The same of bytes that come in pieces, at the speed of the baseline instruction set.
typedef struct kv_xxh3_stream kv_xxh3_stream;

/// Begins one; NULL if there is no memory. It must be freed.
kv_xxh3_stream *kv_xxh3_stream_new(void);
/// Adds the next `length` bytes.
void kv_xxh3_stream_add(kv_xxh3_stream *stream, const void *bytes, size_t length);
/// XXH3-64 of all bytes so far; more may follow.
uint64_t kv_xxh3_stream_value(const kv_xxh3_stream *stream);
/// Ends one.
void kv_xxh3_stream_free(kv_xxh3_stream *stream);
