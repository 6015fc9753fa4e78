// How work is cut into units for the threads, and what is simple enough to have one version.
#include "Kernels.h"
#include <math.h>
#include <string.h>

// --- kinds ------------------------------------------------------------------------------------------------------------------

#if defined(__x86_64__)
static const kvk_kernels *const kinds[] = {&kvk_avx512, &kvk_avx2, &kvk_portable};
static bool can_run(int index) {
    // By hand and not by ifunc: its resolvers run before ThreadSanitizer is up, and tests want each kind.
    return index == 0 ? __builtin_cpu_supports("x86-64-v4") : index == 1 ? __builtin_cpu_supports("x86-64-v3") : true;
}
#else
static const kvk_kernels *const kinds[] = {&kvk_portable};
static bool can_run(int index) { return index == 0; }
#endif

int kvk_kernels_count(void) { return sizeof kinds / sizeof *kinds; }

const kvk_kernels *kvk_kernels_at(int index) {
    return index >= 0 && index < kvk_kernels_count() && can_run(index) ? kinds[index] : NULL;
}

const kvk_kernels *kvk_kernels_best(void) {
    for (int i = 0;; i++)
        if (can_run(i)) return kinds[i];
}

const char *kvk_kernels_name(const kvk_kernels *kernels) { return kernels->name; }
bool kvk_kernels_fused(const kvk_kernels *kernels) { return kernels->fused; }

// --- packing ----------------------------------------------------------------------------------------------------------------

static size_t up(size_t value, size_t step) { return (value + step - 1) / step * step; }

size_t kvk_packed_bytes(size_t columns, size_t depth) { return up(columns, KVK_PANEL) * depth * sizeof(float); }

void kvk_pack(float *packed, size_t depth, size_t first, const float *weights, size_t rows) {
    for (size_t r = 0; r < rows; r++) {
        size_t column = first + r;
        float *to = packed + column / KVK_PANEL * KVK_PANEL * depth + column % KVK_PANEL;
        for (size_t k = 0; k < depth; k++) to[k * KVK_PANEL] = weights[r * depth + k];
    }
}

void kvk_unpack(const float *packed, size_t depth, size_t column, float *weights) {
    const float *from = packed + column / KVK_PANEL * KVK_PANEL * depth + column % KVK_PANEL;
    for (size_t k = 0; k < depth; k++) weights[k] = from[k * KVK_PANEL];
}

// --- units ------------------------------------------------------------------------------------------------------------------

/// Below so many multiply-adds, waking another thread costs more than it saves.
#define WORTH_WAKING 4000000

static void run(kvk_pool *pool, double cost, size_t count, void (*body)(void *, size_t, int), void *context) {
    // Without other threads, too, a call takes its turn: the memory of worker 0 is the same for all callers.
    kvk_pool_run(pool, count, cost >= WORTH_WAKING, body, context);
}

typedef struct {
    const kvk_kernels *kernels;
    const float *a;
    size_t a_stride, rows;
    const float *packed;
    size_t columns, depth;
    float *out;
    size_t out_stride;
    size_t columns_each, rows_each, row_units;
} matmul_job;

static void matmul_unit(void *context, size_t index, int worker) {
    (void)worker;
    const matmul_job *job = context;
    size_t column = index / job->row_units * job->columns_each, row = index % job->row_units * job->rows_each;
    size_t columns = job->columns - column < job->columns_each ? job->columns - column : job->columns_each;
    size_t rows = job->rows - row < job->rows_each ? job->rows - row : job->rows_each;
    job->kernels->matmul(job->a + row * job->a_stride, job->a_stride, rows, job->packed + column * job->depth, columns,
                         job->depth, job->out + row * job->out_stride + column, job->out_stride);
}

void kvk_matmul(kvk_pool *pool, const kvk_kernels *kernels, const float *a, size_t a_stride, size_t rows, const float *packed,
                size_t columns, size_t depth, float *out, size_t out_stride) {
    matmul_job job = {kernels, a, a_stride, rows, packed, columns, depth, out, out_stride, 4 * KVK_PANEL, 240, 0};
    job.row_units = (rows + job.rows_each - 1) / job.rows_each;
    size_t units = (columns + job.columns_each - 1) / job.columns_each * job.row_units;
    run(pool, (double)rows * columns * depth, units, matmul_unit, &job);
}

/// Work on rows, so many at a time.
typedef struct {
    const kvk_kernels *kernels;
    const void *a, *b, *c;
    float *out;
    size_t stride_a, stride_out, rows, width, rows_each, heads;
    float epsilon;
} rows_job;

static size_t take(const rows_job *job, size_t index, size_t *first) {
    *first = index * job->rows_each;
    return job->rows - *first < job->rows_each ? job->rows - *first : job->rows_each;
}

static void run_rows(kvk_pool *pool, rows_job *job, double cost, void (*body)(void *, size_t, int)) {
    job->rows_each = 16;
    run(pool, cost * (double)job->rows * (double)job->width, (job->rows + 15) / 16, body, job);
}

static void rms_norm_unit(void *context, size_t index, int worker) {
    (void)worker;
    const rows_job *job = context;
    size_t first, rows = take(job, index, &first);
    job->kernels->rms_norm((const float *)job->a + first * job->width, job->b, rows, job->width, job->epsilon,
                           job->out + first * job->width);
}

void kvk_rms_norm(kvk_pool *pool, const kvk_kernels *kernels, const float *x, const float *weight, size_t rows, size_t width,
                  float epsilon, float *out) {
    rows_job job = {.kernels = kernels, .a = x, .b = weight, .out = out, .rows = rows, .width = width, .epsilon = epsilon};
    run_rows(pool, &job, 4, rms_norm_unit);
}

static void add_unit(void *context, size_t index, int worker) {
    (void)worker;
    const rows_job *job = context;
    size_t first, rows = take(job, index, &first);
    job->kernels->add(job->out + first * job->stride_out, job->stride_out, (const float *)job->a + first * job->stride_a,
                      job->stride_a, rows, job->width);
}

void kvk_add(kvk_pool *pool, const kvk_kernels *kernels, float *out, size_t out_stride, const float *x, size_t x_stride,
             size_t rows, size_t width) {
    rows_job job = {.kernels = kernels, .a = x, .out = out, .stride_a = x_stride, .stride_out = out_stride, .rows = rows,
                    .width = width};
    run_rows(pool, &job, 2, add_unit);
}

static void swiglu_unit(void *context, size_t index, int worker) {
    (void)worker;
    const rows_job *job = context;
    size_t first, rows = take(job, index, &first);
    job->kernels->swiglu((const float *)job->a + first * 2 * job->width, rows, job->width, job->out + first * job->width);
}

void kvk_swiglu(kvk_pool *pool, const kvk_kernels *kernels, const float *gate_up, size_t rows, size_t width, float *out) {
    rows_job job = {.kernels = kernels, .a = gate_up, .out = out, .rows = rows, .width = width};
    run_rows(pool, &job, 20, swiglu_unit);
}

static void rotate_unit(void *context, size_t index, int worker) {
    (void)worker;
    const rows_job *job = context;
    size_t first, rows = take(job, index, &first), half = job->width / 2;
    job->kernels->rotate(job->out + first * job->stride_out, job->stride_out, rows, job->heads, job->width,
                         (const float *)job->a + first * half, (const float *)job->b + first * half);
}

void kvk_rotate(kvk_pool *pool, const kvk_kernels *kernels, float *x, size_t stride, size_t rows, size_t heads,
                size_t head_size, const float *cosine, const float *sine) {
    rows_job job = {.kernels = kernels, .a = cosine, .b = sine, .out = x, .stride_out = stride, .rows = rows,
                    .width = head_size, .heads = heads};
    run_rows(pool, &job, 6 * (double)heads, rotate_unit);
}

// --- angles -----------------------------------------------------------------------------------------------------------------

#pragma STDC FP_CONTRACT OFF

/// Taylor's polynomials on |r| ≤ π/4, in double precision; what they leave out is below 10⁻¹⁸.
static double sine_near_zero(double r) {
    const double z = r * r;
    double p = 1.0 / 355687428096000.0; // 17!
    p = p * z - 1.0 / 1307674368000.0;
    p = p * z + 1.0 / 6227020800.0;
    p = p * z - 1.0 / 39916800.0;
    p = p * z + 1.0 / 362880.0;
    p = p * z - 1.0 / 5040.0;
    p = p * z + 1.0 / 120.0;
    p = p * z - 1.0 / 6.0;
    return r + r * (z * p);
}

static double cosine_near_zero(double r) {
    const double z = r * r;
    double p = 1.0 / 20922789888000.0; // 16!
    p = p * z - 1.0 / 87178291200.0;
    p = p * z + 1.0 / 479001600.0;
    p = p * z - 1.0 / 3628800.0;
    p = p * z + 1.0 / 40320.0;
    p = p * z - 1.0 / 720.0;
    p = p * z + 1.0 / 24.0;
    p = p * z - 0.5;
    return 1.0 + z * p;
}

void kvk_angles(size_t first, size_t rows, const float *inverse, size_t count, float factor, float *cosine, float *sine) {
    // π/2 in two parts: the first has 33 bits, so that its product with a whole number below 2²⁰ is exact (Cody and Waite).
    const double high = 0x1.921fb544p+0, low = 0x1.0b4611a626331p-34, rounder = 0x1.8p52;
    for (size_t r = 0; r < rows; r++) {
        for (size_t i = 0; i < count; i++) {
            const float angle = (float)(first + r) * inverse[i];
            const double turns = angle * 0.63661977236758134308 + rounder - rounder;
            const double rest = (angle - turns * high) - turns * low;
            const double s = sine_near_zero(rest), c = cosine_near_zero(rest);
            const long quarter = (long)turns & 3;
            const double sines[4] = {s, c, -s, -c};
            sine[r * count + i] = (float)sines[quarter] * factor;
            cosine[r * count + i] = (float)sines[(quarter + 1) & 3] * factor;
        }
    }
}

// --- pages ------------------------------------------------------------------------------------------------------------------

size_t kvk_padded_head_size(size_t head_size) { return up(head_size, KVK_LANES); }

size_t kvk_page_floats(size_t kv_heads, size_t head_size) {
    return kv_heads * (head_size + kvk_padded_head_size(head_size)) * KVK_PAGE_TOKENS;
}

void kvk_store_kv(const kvk_kv *kv, size_t first, const float *keys, const float *values, size_t stride, size_t rows) {
    const size_t size = kv->head_size, padded = kvk_padded_head_size(size);
    for (size_t r = 0; r < rows; r++, keys += stride, values += stride) {
        float *page = kv->pages[(first + r) / KVK_PAGE_TOKENS];
        size_t slot = (first + r) % KVK_PAGE_TOKENS;
        for (size_t h = 0; h < kv->kv_heads; h++) {
            float *to = page + h * size * KVK_PAGE_TOKENS + slot;
            for (size_t i = 0; i < size; i++) to[i * KVK_PAGE_TOKENS] = keys[h * size + i];
            float *row = page + (kv->kv_heads * size + h * padded) * KVK_PAGE_TOKENS + slot * padded;
            memcpy(row, values + h * size, size * sizeof(float));
            // The page may have held something else: the same tokens give the same bytes, padding included.
            memset(row + size, 0, (padded - size) * sizeof(float));
        }
    }
}

// --- attention --------------------------------------------------------------------------------------------------------------

size_t kvk_attention_scratch_bytes(size_t group, size_t head_size) {
    size_t rows = KVK_QUERY_TOKENS * group;
    return rows * (2 * kvk_padded_head_size(head_size) + KVK_PAGE_TOKENS + 16 + 1) * sizeof(float);
}

typedef struct {
    kvk_pool *pool;
    const kvk_kernels *kernels;
    kvk_attention_unit whole;
    size_t scratch_bytes, blocks;
} attention_job;

static void attention_unit(void *context, size_t index, int worker) {
    const attention_job *job = context;
    kvk_attention_unit unit = job->whole;
    // The last queries see the most: first come, first done.
    size_t row = (job->blocks - 1 - index / unit.kv->kv_heads) * KVK_QUERY_TOKENS;
    unit.kv_head = index % unit.kv->kv_heads;
    unit.q += row * unit.q_stride;
    unit.out += row * unit.out_stride;
    unit.first += row;
    unit.rows = unit.rows - row < KVK_QUERY_TOKENS ? unit.rows - row : KVK_QUERY_TOKENS;
    job->kernels->attention(&unit, kvk_pool_scratch(job->pool, worker, job->scratch_bytes));
}

void kvk_attention(kvk_pool *pool, const kvk_kernels *kernels, const kvk_kv *kv, size_t heads, const float *q, size_t q_stride,
                   size_t first, size_t rows, float *out, size_t out_stride) {
    attention_job job = {pool,
                         kernels,
                         {kv, heads, 0, q, q_stride, first, rows, out, out_stride},
                         kvk_attention_scratch_bytes(heads / kv->kv_heads, kv->head_size),
                         (rows + KVK_QUERY_TOKENS - 1) / KVK_QUERY_TOKENS};
    double cost = 2.0 * (double)rows * (double)(first + rows) * (double)heads * (double)kv->head_size;
    run(pool, cost, job.blocks * kv->kv_heads, attention_unit, &job);
}
