// x86-64-v4: 32 registers of 16 floats; 8 × 32 elements in 16 of them.
#if defined(__x86_64__)
#pragma clang attribute push(__attribute__((target("arch=x86-64-v4"))), apply_to = function)
#define KVK_NAME kvk_avx512
#define KVK_TITLE "avx512"
#define KVK_FUSED 1
#define KVK_ROWS 8
#define KVK_VECTORS 2
#include "KernelBodies.h"
#pragma clang attribute pop
#endif
