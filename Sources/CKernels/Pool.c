#define _GNU_SOURCE
#include "Kernels.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

typedef struct {
    kvk_pool *pool;
    pthread_t thread;
    int number;
    void *scratch;
    size_t scratch_bytes;
} worker;

struct kvk_pool {
    int threads;
    worker *workers;
    /// Held by the caller of kvk_pool_run throughout.
    pthread_mutex_t one_call;
    pthread_mutex_t mutex;
    pthread_cond_t has_work, is_done;
    /// Raised with each call; what the call is about is written before.
    atomic_uint_fast64_t round;
    /// Workers that have not finished this round.
    atomic_int busy;
    /// Workers that wait for has_work; under the mutex.
    int sleeping;
    atomic_bool ends;
    atomic_size_t next;
    size_t count;
    void (*body)(void *context, size_t index, int worker);
    void *context;
};

/// How often a thread looks again before it sleeps: some ten microseconds. Between two products of a layer there are less, and
/// waking a thread that sleeps costs more.
#define LOOKS 1000

static void pause_a_moment(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void work(kvk_pool *pool, int number) {
    for (;;) {
        size_t index = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (index >= pool->count) return;
        pool->body(pool->context, index, number);
    }
}

static void name_thread(void) {
#if defined(__linux__)
    pthread_setname_np(pthread_self(), "lm-compute");
#endif
}

/// Returns true when there is another round than `seen`, false when the pool ends.
static bool wait_for_work(kvk_pool *pool, uint_fast64_t seen) {
    for (int i = 0; i < LOOKS; i++) {
        if (atomic_load_explicit(&pool->ends, memory_order_relaxed)) return false;
        if (atomic_load_explicit(&pool->round, memory_order_acquire) != seen) return true;
        pause_a_moment();
    }
    pthread_mutex_lock(&pool->mutex);
    pool->sleeping++;
    while (atomic_load_explicit(&pool->round, memory_order_acquire) == seen &&
           !atomic_load_explicit(&pool->ends, memory_order_relaxed))
        pthread_cond_wait(&pool->has_work, &pool->mutex);
    pool->sleeping--;
    bool goes_on = !atomic_load_explicit(&pool->ends, memory_order_relaxed);
    pthread_mutex_unlock(&pool->mutex);
    return goes_on;
}

static void wait_for_workers(kvk_pool *pool) {
    for (int i = 0; i < LOOKS; i++) {
        if (atomic_load_explicit(&pool->busy, memory_order_acquire) == 0) return;
        pause_a_moment();
    }
    pthread_mutex_lock(&pool->mutex);
    while (atomic_load_explicit(&pool->busy, memory_order_acquire) > 0) pthread_cond_wait(&pool->is_done, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
}

static void *run_worker(void *argument) {
    name_thread();
    worker *self = argument;
    kvk_pool *pool = self->pool;
    uint_fast64_t seen = 0;
    while (wait_for_work(pool, seen)) {
        // The next round begins only when all have finished this one.
        seen = atomic_load_explicit(&pool->round, memory_order_acquire);
        work(pool, self->number);
        if (atomic_fetch_sub_explicit(&pool->busy, 1, memory_order_acq_rel) == 1) {
            pthread_mutex_lock(&pool->mutex);
            pthread_cond_signal(&pool->is_done);
            pthread_mutex_unlock(&pool->mutex);
        }
    }
    return NULL;
}

kvk_pool *kvk_pool_create(int threads) {
    if (threads < 1) threads = 1;
    kvk_pool *pool = calloc(1, sizeof *pool);
    if (!pool) return NULL;
    pool->workers = calloc((size_t)threads, sizeof(worker));
    if (!pool->workers) {
        free(pool);
        return NULL;
    }
    pthread_mutex_init(&pool->one_call, NULL);
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->has_work, NULL);
    pthread_cond_init(&pool->is_done, NULL);
    pool->threads = 1;
    for (int i = 1; i < threads; i++) {
        worker *one = &pool->workers[i];
        one->pool = pool;
        one->number = i;
        if (pthread_create(&one->thread, NULL, run_worker, one) != 0) {
            kvk_pool_destroy(pool);
            return NULL;
        }
        pool->threads = i + 1;
    }
    return pool;
}

void kvk_pool_destroy(kvk_pool *pool) {
    if (!pool) return;
    pthread_mutex_lock(&pool->mutex);
    atomic_store_explicit(&pool->ends, true, memory_order_relaxed);
    pthread_cond_broadcast(&pool->has_work);
    pthread_mutex_unlock(&pool->mutex);
    for (int i = 1; i < pool->threads; i++) pthread_join(pool->workers[i].thread, NULL);
    for (int i = 0; i < pool->threads; i++) free(pool->workers[i].scratch);
    pthread_cond_destroy(&pool->is_done);
    pthread_cond_destroy(&pool->has_work);
    pthread_mutex_destroy(&pool->mutex);
    pthread_mutex_destroy(&pool->one_call);
    free(pool->workers);
    free(pool);
}

int kvk_pool_threads(const kvk_pool *pool) { return pool->threads; }

void kvk_pool_run(kvk_pool *pool, size_t count, bool wakes, void (*body)(void *context, size_t index, int worker),
                  void *context) {
    pthread_mutex_lock(&pool->one_call);
    pool->body = body;
    pool->context = context;
    pool->count = count;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    bool alone = !wakes || pool->threads == 1 || count <= 1;
    if (!alone) {
        atomic_store_explicit(&pool->busy, pool->threads - 1, memory_order_relaxed);
        pthread_mutex_lock(&pool->mutex);
        atomic_fetch_add_explicit(&pool->round, 1, memory_order_release);
        if (pool->sleeping > 0) pthread_cond_broadcast(&pool->has_work);
        pthread_mutex_unlock(&pool->mutex);
    }
    work(pool, 0);
    if (!alone) wait_for_workers(pool);
    pthread_mutex_unlock(&pool->one_call);
}

void *kvk_pool_scratch(kvk_pool *pool, int number, size_t bytes) {
    worker *one = &pool->workers[number];
    if (one->scratch_bytes < bytes) {
        free(one->scratch);
        one->scratch_bytes = (bytes + 63) / 64 * 64;
        one->scratch = aligned_alloc(64, one->scratch_bytes);
        // At most 64 MiB (models that need more are refused): where these are not to be had, nothing can go on.
        if (!one->scratch) abort();
    }
    return one->scratch;
}
