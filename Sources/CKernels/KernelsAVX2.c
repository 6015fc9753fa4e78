// x86-64-v3: 16 registers of 8 floats; 6 × 16 elements in 12 of them.
#if defined(__x86_64__)
#pragma clang attribute push(__attribute__((target("arch=x86-64-v3"))), apply_to = function)
#define KVK_NAME kvk_avx2
#define KVK_TITLE "avx2"
#define KVK_FUSED 1
#define KVK_ROWS 6
#define KVK_VECTORS 1
#include "KernelBodies.h"
#pragma clang attribute pop
#endif
