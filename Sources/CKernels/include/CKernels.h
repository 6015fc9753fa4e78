// Kernels of a small transformer in float32, and the threads that run them.
//
// Determinism. Each output element is computed by one thread in one order of operations, which depends on the element alone:
// not on how many rows are computed together, not on the number of threads, not on the width of the processor's registers.
// Sums over the depth of a product run from the first term to the last in one chain of fused multiply-adds; sums over a row
// run in 16 lanes that are added in a fixed tree; attention walks the pages of a sequence from the first on, whatever the
// query. So the same tokens give the same bits however they are cut into batches, as long as all values are finite.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/// Columns that are packed together; see kvk_pack.
#define KVK_PANEL 32
/// Tokens of a page of keys and values.
#define KVK_PAGE_TOKENS 64
/// Values in a row of a page are padded to a multiple of this.
#define KVK_LANES 16

/// Code for one kind of processor: `avx512`, `avx2` or `portable`.
typedef struct kvk_kernels kvk_kernels;

/// How many kinds this build has.
int kvk_kernels_count(void);
/// One kind, the fastest first; NULL where this processor can't run it or there is no such index.
const kvk_kernels *kvk_kernels_at(int index);
/// The fastest kind that this processor can run.
const kvk_kernels *kvk_kernels_best(void);
/// Its name.
const char *kvk_kernels_name(const kvk_kernels *kernels);
/// Whether multiply-adds are fused, in hardware. All kinds that fuse give the same bits; those that don't, others.
bool kvk_kernels_fused(const kvk_kernels *kernels);

/// Threads that wait for work. Calls from several threads run one after the other.
typedef struct kvk_pool kvk_pool;

/// A pool of `threads` threads, the caller's included (at least 1). NULL when the system gives no more.
kvk_pool *kvk_pool_create(int threads);
/// Ends the threads and frees the pool. No call may be under way.
void kvk_pool_destroy(kvk_pool *pool);
/// Threads that work at a call, the caller's included.
int kvk_pool_threads(const kvk_pool *pool);
/// Bytes that kvk_pack needs, a multiple of 64.
size_t kvk_packed_bytes(size_t columns, size_t depth);

/// Puts rows of a weight matrix, `rows` × `depth`, in place as columns `first`… of a packed matrix.
///
/// Packed: panels of 32 columns, one after the other; in a panel, for each step of the depth the 32 values side by side. Columns
/// beyond the last must be zero, so the memory is zeroed before the first call.
void kvk_pack(float *packed, size_t depth, size_t first, const float *weights, size_t rows);

/// Reads column `column` of a packed matrix: the row of weights that it was.
void kvk_unpack(const float *packed, size_t depth, size_t column, float *weights);

/// out[r][c] = Σ a[r][k] · packed[c][k], for `rows` rows. Rows of `a` are `a_stride` floats apart, those of `out` `out_stride`.
void kvk_matmul(kvk_pool *pool, const kvk_kernels *kernels, const float *a, size_t a_stride, size_t rows, const float *packed,
                size_t columns, size_t depth, float *out, size_t out_stride);

/// out = x / √(mean(x²) + epsilon) · weight, for each of `rows` rows of `width`.
void kvk_rms_norm(kvk_pool *pool, const kvk_kernels *kernels, const float *x, const float *weight, size_t rows, size_t width,
                  float epsilon, float *out);

/// out += x, for `rows` rows of `width`, `out_stride` and `x_stride` floats apart. A stride of 0 repeats one row.
void kvk_add(kvk_pool *pool, const kvk_kernels *kernels, float *out, size_t out_stride, const float *x, size_t x_stride,
             size_t rows, size_t width);

/// SwiGLU: for each row of 2 × `width` (gate, then up), out = silu(gate) · up.
void kvk_swiglu(kvk_pool *pool, const kvk_kernels *kernels, const float *gate_up, size_t rows, size_t width, float *out);

/// cos and sin, times `factor`, of the angles of `rows` positions from `first` on: position × inverse[i], a float32 product.
///
/// For each row `count` values each. Angles below a million; correct to within a unit in the last place. Not the C library's
/// functions, whose last bits change with its version: what is stored must be what any other machine computes.
void kvk_angles(size_t first, size_t rows, const float *inverse, size_t count, float factor, float *cosine, float *sine);

/// Rotates `heads` heads of `head_size` in each of `rows` rows, `stride` floats apart, halves against each other.
///
/// `cosine` and `sine` have head_size / 2 values for each row.
void kvk_rotate(kvk_pool *pool, const kvk_kernels *kernels, float *x, size_t stride, size_t rows, size_t heads,
                size_t head_size, const float *cosine, const float *sine);

/// The keys and values of one layer, in pages.
///
/// A page holds KVK_PAGE_TOKENS tokens. For each KV head: keys as [head_size][tokens], then, after all heads' keys, for each head
/// values as [tokens][padded head size]. Everything in a page must be finite, also beyond the last token: what is not seen counts
/// with the weight 0, and 0 times infinity is no number.
typedef struct {
    size_t kv_heads;
    size_t head_size;
    /// The pages of the sequence, in order.
    float *const *pages;
} kvk_kv;

/// head_size, rounded up to whole vectors.
size_t kvk_padded_head_size(size_t head_size);
/// Floats of a page of one layer.
size_t kvk_page_floats(size_t kv_heads, size_t head_size);

/// Puts keys and values of `rows` tokens, from position `first` on, into the pages, and zeros into the padding. Rows are
/// `stride` floats apart.
void kvk_store_kv(const kvk_kv *kv, size_t first, const float *keys, const float *values, size_t stride, size_t rows);

/// Bytes that attention needs for each thread, with `group` heads for each KV head.
size_t kvk_attention_scratch_bytes(size_t group, size_t head_size);

/// Causal attention of `rows` queries at positions `first`…: out = softmax(q · k / √head_size) · v.
///
/// Queries are [row][head][head_size], rows `q_stride` apart; `out` likewise, `out_stride` apart. Heads that share a KV head are
/// next to each other. Keys and values up to position first + rows - 1 must be in the pages.
void kvk_attention(kvk_pool *pool, const kvk_kernels *kernels, const kvk_kv *kv, size_t heads, const float *q, size_t q_stride,
                   size_t first, size_t rows, float *out, size_t out_stride);
