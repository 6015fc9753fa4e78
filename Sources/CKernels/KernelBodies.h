// The kernels, written once in vectors of 16 floats and compiled for each kind of processor. The including file defines
//   KVK_NAME      the table that this makes
//   KVK_TITLE     its name
//   KVK_FUSED     1 where a·b+c is one instruction with one rounding
//   KVK_ROWS      rows, and
//   KVK_VECTORS   vectors of 16 columns that a tile keeps in registers
#include "Kernels.h"
#include <math.h>
#include <string.h>

#pragma STDC FP_CONTRACT OFF
// Vectors are passed to functions that are always inlined, so no calling convention is at stake.
#pragma clang diagnostic ignored "-Wpsabi"

typedef float v16 __attribute__((vector_size(64)));
typedef int32_t i16 __attribute__((vector_size(64)));
typedef float v16_unaligned __attribute__((vector_size(64), aligned(4)));

#define KVK_INLINE static inline __attribute__((always_inline))

KVK_INLINE v16 load(const float *from) { return *(const v16_unaligned *)from; }
KVK_INLINE void store(float *to, v16 value) { *(v16_unaligned *)to = value; }
KVK_INLINE v16 splat(float value) { return value - (v16){}; }

#if KVK_FUSED
KVK_INLINE v16 multiply_add(v16 a, v16 b, v16 c) { return __builtin_elementwise_fma(a, b, c); }
KVK_INLINE float multiply_add_one(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
KVK_INLINE v16 multiply_add(v16 a, v16 b, v16 c) { return a * b + c; }
KVK_INLINE float multiply_add_one(float a, float b, float c) { return a * b + c; }
#endif

KVK_INLINE v16 choose(i16 mask, v16 yes, v16 no) { return (v16)((mask & (i16)yes) | (~mask & (i16)no)); }

/// Each lane with the one `step` further on, for steps of 8, 4, 2 and 1: a tree over all 16 lanes, always the same.
#define KVK_HIGH_8(x) __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15)
#define KVK_HIGH_4(x) __builtin_shufflevector(x, x, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7)
#define KVK_HIGH_2(x) __builtin_shufflevector(x, x, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3)
#define KVK_HIGH_1(x) __builtin_shufflevector(x, x, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)

KVK_INLINE float sum_lanes(v16 x) {
    x = x + KVK_HIGH_8(x);
    x = x + KVK_HIGH_4(x);
    x = x + KVK_HIGH_2(x);
    x = x + KVK_HIGH_1(x);
    return x[0];
}

KVK_INLINE v16 larger(v16 a, v16 b) { return choose(a > b, a, b); }

KVK_INLINE float largest_lane(v16 x) {
    x = larger(x, KVK_HIGH_8(x));
    x = larger(x, KVK_HIGH_4(x));
    x = larger(x, KVK_HIGH_2(x));
    x = larger(x, KVK_HIGH_1(x));
    return x[0];
}

/// e^x for x ≤ 88, to within 2 units in the last place; 0 below -87.3. Cody–Waite reduction by ln 2 in two parts, then the Taylor
/// polynomial of degree 7 on |r| ≤ ln(2)/2.
KVK_INLINE v16 exponential_below_88(v16 x) {
    const v16 bottom = splat(-87.33654f);
    const v16 magic = splat(12582912.0f); // 1.5 · 2²³: adding it rounds to a whole number.
    i16 vanishes = x < bottom;
    x = choose(vanishes, bottom, x);
    v16 n = multiply_add(x, splat(1.44269504088896341f), magic) - magic;
    v16 r = multiply_add(n, splat(-0.693359375f), x);
    r = multiply_add(n, splat(2.12194440e-4f), r);
    v16 p = splat(1.0f / 5040);
    p = multiply_add(p, r, splat(1.0f / 720));
    p = multiply_add(p, r, splat(1.0f / 120));
    p = multiply_add(p, r, splat(1.0f / 24));
    p = multiply_add(p, r, splat(1.0f / 6));
    p = multiply_add(p, r, splat(0.5f));
    p = multiply_add(p, r, splat(1.0f));
    p = multiply_add(p, r, splat(1.0f));
    i16 exponent = __builtin_convertvector(n, i16);
    v16 scaled = p * (v16)((exponent + 127) << 23);
    return choose(vanishes, splat(0), scaled);
}

/// e^x; what e^88 is above 88.
KVK_INLINE v16 exponential(v16 x) { return exponential_below_88(choose(x > splat(88.0f), splat(88.0f), x)); }

// --- products ---------------------------------------------------------------------------------------------------------------

/// A tile of `rows` × 16·`vectors` elements: each its own chain over the depth, from what is in `out` or from zero.
KVK_INLINE void tile(int rows, int vectors, const float *a, size_t a_stride, const float *b, size_t b_stride, size_t depth,
                     float *out, size_t out_stride, bool continues) {
    v16 sum[KVK_ROWS][KVK_VECTORS > 4 ? KVK_VECTORS : 4];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) sum[r][v] = continues ? load(out + r * out_stride + 16 * v) : splat(0);
    for (size_t k = 0; k < depth; k++) {
        v16 column[KVK_VECTORS > 4 ? KVK_VECTORS : 4];
        for (int v = 0; v < vectors; v++) column[v] = load(b + k * b_stride + 16 * v);
        for (int r = 0; r < rows; r++) {
            v16 one = splat(a[r * a_stride + k]);
            for (int v = 0; v < vectors; v++) sum[r][v] = multiply_add(one, column[v], sum[r][v]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) store(out + r * out_stride + 16 * v, sum[r][v]);
}

/// The same for any number of rows up to KVK_ROWS.
static void tile_of(int rows, int vectors, const float *a, size_t a_stride, const float *b, size_t b_stride, size_t depth,
                    float *out, size_t out_stride, bool continues) {
#define KVK_CASE(R)                                                                                                            \
    case R:                                                                                                                    \
        if (vectors == KVK_VECTORS) tile(R, KVK_VECTORS, a, a_stride, b, b_stride, depth, out, out_stride, continues);         \
        else tile(R, 1, a, a_stride, b, b_stride, depth, out, out_stride, continues);                                          \
        break;
    switch (rows) {
        KVK_CASE(1)
#if KVK_ROWS >= 2
        KVK_CASE(2)
#endif
#if KVK_ROWS >= 3
        KVK_CASE(3)
#endif
#if KVK_ROWS >= 4
        KVK_CASE(4)
#endif
#if KVK_ROWS >= 5
        KVK_CASE(5)
#endif
#if KVK_ROWS >= 6
        KVK_CASE(6)
#endif
#if KVK_ROWS >= 7
        KVK_CASE(7)
#endif
#if KVK_ROWS >= 8
        KVK_CASE(8)
#endif
    }
#undef KVK_CASE
}

/// out (rows × 16·vectors) from a (rows × depth) and b (depth × 16·vectors), in tiles.
KVK_INLINE void product(const float *a, size_t a_stride, size_t rows, const float *b, size_t b_stride, size_t vectors,
                        size_t depth, float *out, size_t out_stride, bool continues) {
    for (size_t v = 0; v < vectors;) {
        int width = vectors - v >= KVK_VECTORS ? KVK_VECTORS : 1;
        for (size_t r = 0; r < rows; r += KVK_ROWS) {
            int height = rows - r < KVK_ROWS ? (int)(rows - r) : KVK_ROWS;
            tile_of(height, width, a + r * a_stride, a_stride, b + 16 * v, b_stride, depth, out + r * out_stride + 16 * v,
                    out_stride, continues);
        }
        v += width;
    }
}

/// Steps of the depth that are taken together, so that a panel's part stays in the first-level cache.
#define KVK_DEPTH_BLOCK 256

/// One row by four panels at once: more chains than one panel has, for the latency of a multiply-add.
static void one_row(const float *a, const float *panels, size_t depth, float *out) {
    v16 sum[8];
    for (int v = 0; v < 8; v++) sum[v] = splat(0);
    const size_t step = depth * KVK_PANEL;
    for (size_t k = 0; k < depth; k++) {
        v16 one = splat(a[k]);
        for (int v = 0; v < 8; v++)
            sum[v] = multiply_add(one, load(panels + (v / 2) * step + k * KVK_PANEL + 16 * (v % 2)), sum[v]);
    }
    for (int v = 0; v < 8; v++) store(out + 16 * v, sum[v]);
}

static void matmul(const float *a, size_t a_stride, size_t rows, const float *panels, size_t columns, size_t depth, float *out,
                   size_t out_stride) {
    size_t c = 0;
    if (rows == 1)
        for (; c + 4 * KVK_PANEL <= columns; c += 4 * KVK_PANEL) one_row(a, panels + c * depth, depth, out + c);
    for (; c < columns; c += KVK_PANEL) {
        const float *panel = panels + c * depth;
        size_t width = columns - c < KVK_PANEL ? columns - c : KVK_PANEL;
        if (width == KVK_PANEL) {
            for (size_t k = 0; k < depth; k += KVK_DEPTH_BLOCK) {
                size_t part = depth - k < KVK_DEPTH_BLOCK ? depth - k : KVK_DEPTH_BLOCK;
                product(a + k, a_stride, rows, panel + k * KVK_PANEL, KVK_PANEL, KVK_PANEL / 16, part, out + c, out_stride,
                        k > 0);
            }
            continue;
        }
        // The last panel is not whole: its tiles don't fit into `out`.
        for (size_t r = 0; r < rows; r += KVK_ROWS) {
            float whole[KVK_ROWS * KVK_PANEL];
            size_t height = rows - r < KVK_ROWS ? rows - r : KVK_ROWS;
            product(a + r * a_stride, a_stride, height, panel, KVK_PANEL, KVK_PANEL / 16, depth, whole, KVK_PANEL, false);
            for (size_t i = 0; i < height; i++)
                memcpy(out + (r + i) * out_stride + c, whole + i * KVK_PANEL, width * sizeof(float));
        }
    }
}

// --- rows -------------------------------------------------------------------------------------------------------------------

/// Up to 16 floats; the others are zero.
KVK_INLINE v16 load_some(const float *from, size_t count) {
    if (count >= 16) return load(from);
    float padded[16] = {0};
    memcpy(padded, from, count * sizeof(float));
    return load(padded);
}

KVK_INLINE void store_some(float *to, v16 value, size_t count) {
    if (count >= 16) store(to, value);
    else memcpy(to, &value, count * sizeof(float));
}

static void rms_norm(const float *x, const float *weight, size_t rows, size_t width, float epsilon, float *out) {
    for (size_t r = 0; r < rows; r++, x += width, out += width) {
        v16 squares = splat(0);
        for (size_t i = 0; i < width; i += 16) {
            v16 part = load_some(x + i, width - i);
            squares = multiply_add(part, part, squares);
        }
        v16 factor = splat(1.0f / sqrtf(sum_lanes(squares) / (float)width + epsilon));
        for (size_t i = 0; i < width; i += 16) {
            v16 scaled = load_some(x + i, width - i) * factor;
            store_some(out + i, load_some(weight + i, width - i) * scaled, width - i);
        }
    }
}

static void add(float *out, size_t out_stride, const float *x, size_t x_stride, size_t rows, size_t width) {
    for (size_t r = 0; r < rows; r++, x += x_stride, out += out_stride)
        for (size_t i = 0; i < width; i += 16)
            store_some(out + i, load_some(out + i, width - i) + load_some(x + i, width - i), width - i);
}

static void swiglu(const float *gate_up, size_t rows, size_t width, float *out) {
    for (size_t r = 0; r < rows; r++, gate_up += 2 * width, out += width) {
        for (size_t i = 0; i < width; i += 16) {
            v16 gate = load_some(gate_up + i, width - i), up = load_some(gate_up + width + i, width - i);
            v16 silu = gate / (splat(1) + exponential(splat(0) - gate));
            // The exponential grows no more, but the gate does: what is below 10⁻³⁶ there is 0.
            silu = choose(gate < splat(-88.0f), splat(0), silu);
            store_some(out + i, silu * up, width - i);
        }
    }
}

static void rotate(float *x, size_t stride, size_t rows, size_t heads, size_t head_size, const float *cosine,
                   const float *sine) {
    const size_t half = head_size / 2;
    for (size_t r = 0; r < rows; r++, x += stride, cosine += half, sine += half) {
        for (size_t h = 0; h < heads; h++) {
            float *low = x + h * head_size, *high = low + half;
            for (size_t i = 0; i < half; i += 16) {
                v16 c = load_some(cosine + i, half - i), s = load_some(sine + i, half - i);
                v16 a = load_some(low + i, half - i), b = load_some(high + i, half - i);
                v16 first = a * c - b * s, second = b * c + a * s;
                store_some(low + i, first, half - i);
                store_some(high + i, second, half - i);
            }
        }
    }
}

// --- attention --------------------------------------------------------------------------------------------------------------

/// One page of one row: scores become weights, and the sums and the accumulator so far are brought to the new maximum.
///
/// A page or a token that the query does not see changes nothing, to the bit: its weights are 0, the maximum stays.
/// `sums` are 16 lanes, which are added at the end.
KVK_INLINE void soften(float *scores, long visible, float *maximum, float *sums, float *accumulator, size_t width) {
    v16 part[KVK_PAGE_TOKENS / 16];
    for (int i = 0; i < KVK_PAGE_TOKENS / 16; i++) part[i] = load(scores + 16 * i);
    if (visible < KVK_PAGE_TOKENS) {
        const i16 lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        for (int i = 0; i < KVK_PAGE_TOKENS / 16; i++) {
            i16 seen = lanes < (i16){} + (int32_t)(visible - 16 * i);
            part[i] = choose(seen, part[i], splat(-INFINITY));
        }
    }
    v16 top = larger(larger(part[0], part[1]), larger(part[2], part[3]));
    v16 total = load(sums);
    float next = largest_lane(top);
    if (next > *maximum) {
        v16 factor = exponential_below_88(splat(*maximum - next));
        total *= factor;
        for (size_t i = 0; i < width; i += 16) store(accumulator + i, load(accumulator + i) * factor);
        *maximum = next;
    }
    const v16 shift = splat(*maximum);
    for (int i = 0; i < KVK_PAGE_TOKENS / 16; i++) {
        v16 weight = exponential_below_88(part[i] - shift);
        total += weight;
        store(scores + 16 * i, weight);
    }
    store(sums, total);
}

static void attention(const kvk_attention_unit *unit, float *scratch) {
    const kvk_kv *kv = unit->kv;
    const size_t size = kv->head_size, padded = kvk_padded_head_size(size), group = unit->heads / kv->kv_heads;
    const size_t rows = unit->rows * group;
    float *queries = scratch, *scores = queries + rows * padded, *accumulator = scores + rows * KVK_PAGE_TOKENS;
    float *sums = accumulator + rows * padded, *maxima = sums + rows * 16;
    const float scale = 1.0f / sqrtf((float)size);
    for (size_t r = 0; r < rows; r++) {
        const float *q = unit->q + (r / group) * unit->q_stride + (unit->kv_head * group + r % group) * size;
        for (size_t i = 0; i < size; i++) queries[r * padded + i] = q[i] * scale;
        maxima[r] = -INFINITY;
        store(sums + 16 * r, splat(0));
    }
    memset(accumulator, 0, rows * padded * sizeof(float));
    const size_t last = unit->first + unit->rows - 1;
    const size_t keys = unit->kv_head * size * KVK_PAGE_TOKENS;
    const size_t values = (kv->kv_heads * size + unit->kv_head * padded) * KVK_PAGE_TOKENS;
    for (size_t page = 0; page <= last / KVK_PAGE_TOKENS; page++) {
        const float *from = kv->pages[page];
        product(queries, padded, rows, from + keys, KVK_PAGE_TOKENS, KVK_PAGE_TOKENS / 16, size, scores, KVK_PAGE_TOKENS, false);
        for (size_t r = 0; r < rows; r++) {
            long visible = (long)(unit->first + r / group + 1) - (long)(page * KVK_PAGE_TOKENS);
            soften(scores + r * KVK_PAGE_TOKENS, visible, maxima + r, sums + 16 * r, accumulator + r * padded, padded);
        }
        product(scores, KVK_PAGE_TOKENS, rows, from + values, padded, padded / 16, KVK_PAGE_TOKENS, accumulator, padded, true);
    }
    for (size_t r = 0; r < rows; r++) {
        float *out = unit->out + (r / group) * unit->out_stride + (unit->kv_head * group + r % group) * size;
        v16 share = splat(1.0f / sum_lanes(load(sums + 16 * r)));
        for (size_t i = 0; i < size; i += 16) {
            // A sum that underflowed to -0 is +0 once a value that is not seen was added with the weight 0: make it +0 always.
            v16 mean = load(accumulator + r * padded + i) * share + splat(0);
            store_some(out + i, mean, size - i);
        }
    }
}

const kvk_kernels KVK_NAME = {KVK_TITLE, KVK_FUSED, matmul, rms_norm, add, swiglu, rotate, attention};
