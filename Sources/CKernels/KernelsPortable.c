// For any processor. On Arm the compiler has fused multiply-adds at hand; on x86-64 without flags it has not.
#define KVK_NAME kvk_portable
#define KVK_TITLE "portable"
#if defined(__aarch64__)
#define KVK_FUSED 1
#define KVK_ROWS 4
#define KVK_VECTORS 1
#else
#define KVK_FUSED 0
#define KVK_ROWS 2
#define KVK_VECTORS 1
#endif
#include "KernelBodies.h"
