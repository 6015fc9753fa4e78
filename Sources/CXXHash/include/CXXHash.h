// XXH3 (https://github.com/Cyan4973/xxHash, BSD 2-Clause), compiled for the processor's widest vectors at run time.
#pragma once
#include <stddef.h>
#include <stdint.h>

/// XXH3-64 of `length` bytes at `bytes`; the same value on every processor.
uint64_t kv_xxh3_64(const void *bytes, size_t length);
