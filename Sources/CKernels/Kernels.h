// What the kinds of kernels have in common; private to this target.
#pragma once
#include "CKernels.h"

/// One unit of attention: some rows of queries, all heads of one KV head.
typedef struct {
    const kvk_kv *kv;
    size_t heads, kv_head;
    const float *q;
    size_t q_stride, first, rows;
    float *out;
    size_t out_stride;
} kvk_attention_unit;

struct kvk_kernels {
    const char *name;
    bool fused;
    /// out[r][c] for `rows` rows and the columns of `panels` panels of which `columns` are wanted.
    void (*matmul)(const float *a, size_t a_stride, size_t rows, const float *panels, size_t columns, size_t depth, float *out,
                   size_t out_stride);
    void (*rms_norm)(const float *x, const float *weight, size_t rows, size_t width, float epsilon, float *out);
    void (*add)(float *out, size_t out_stride, const float *x, size_t x_stride, size_t rows, size_t width);
    void (*swiglu)(const float *gate_up, size_t rows, size_t width, float *out);
    void (*rotate)(float *x, size_t stride, size_t rows, size_t heads, size_t head_size, const float *cosine, const float *sine);
    /// `scratch` has kvk_attention_scratch_bytes, aligned to 64.
    void (*attention)(const kvk_attention_unit *unit, float *scratch);
};

/// Query tokens of a unit of attention.
#define KVK_QUERY_TOKENS 32

extern const kvk_kernels kvk_portable;
#if defined(__x86_64__)
extern const kvk_kernels kvk_avx2;
extern const kvk_kernels kvk_avx512;
#endif

/// Runs body(context, index, worker) for each index below `count`: on all threads of the pool if it `wakes` them, otherwise on the
/// caller's, as worker 0. Calls from several threads run one after the other.
void kvk_pool_run(kvk_pool *pool, size_t count, bool wakes, void (*body)(void *context, size_t index, int worker),
                  void *context);
/// Memory of one worker, aligned to 64, kept between calls.
void *kvk_pool_scratch(kvk_pool *pool, int worker, size_t bytes);
