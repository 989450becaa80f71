/* One pass over the observed entries of X = L R^T, in tiles whose rows of L and R fit the cache.

   The caller defines REAL (float or double) and RANK, the number of columns, by which the compiler
   unrolls the loops; RANK 0 takes it from the job. Tiles are numbered by bands of rows, then of
   columns. Threads claim bands of rows; a tile waits until the band above it has finished its
   columns. So every sum has the same terms in the same order for any number of threads. */

#include <sched.h>
#include <stdint.h>
#include <string.h>

typedef REAL real;

typedef struct {
    int64_t rank, m, n, count;            /* X is m x n with `count` entries */
    int64_t samples, shared;              /* shared: all samples have the same values */
    int64_t row_bands, col_bands, height, width;
    const int64_t *starts;                /* of the tiles, row_bands * col_bands + 1 */
    const int32_t *rows, *cols, *places;  /* places: where callers keep an entry, or null */
    const real *values, *weights;         /* in the order of the tiles; weights or null */
    const real *left, *right;             /* (samples, m, rank), (samples, n, rank) */
    const real *row_shifts, *col_shifts;  /* (samples, m), (samples, n): added to X; or null */
    real *slopes;                         /* (samples, count), in the order of the callers */
    real *g_right, *g_left;               /* G R and G^T L, shaped as left and right; or sums */
    double *energies;                     /* (samples, row_bands * col_bands) */
    int32_t *finished;                    /* (samples, col_bands), 0: bands of rows done */
    int64_t next;                         /* 0: the next band of rows of any sample */
} Job;

enum { CONTRACT, SAMPLE, SPREAD, SUMS, AHEAD = 8 };

/* The entries first..last-1 of one sample; returns twice the energy. */
#define ARGUMENTS                                                                                 \
    int64_t first, int64_t end, int64_t last, int64_t rank, const int32_t *rows,                  \
        const int32_t *cols, const int32_t *places, const real *values, const real *weights,      \
        const real *restrict left, const real *restrict right, const real *row_shifts,            \
        const real *col_shifts, real *restrict slopes, real *restrict g_right,                    \
        real *restrict g_left

static inline __attribute__((always_inline)) double entries(const int task, ARGUMENTS)
{
    const int64_t r = RANK ? RANK : rank;
    double energy = 0;
    for (int64_t e = first; e < end; e++) {
        const int64_t f = e + AHEAD < last ? e + AHEAD : last;
        const int64_t up = rows[f] * r, down = cols[f] * r, i = rows[e] * r, j = cols[e] * r;
        for (int64_t k = 0; k < r; k += 64 / (int64_t)sizeof(real)) {
            __builtin_prefetch(left + up + k, 0, 3);
            __builtin_prefetch(right + down + k, 0, 3);
            if (task == CONTRACT || task == SPREAD) {
                __builtin_prefetch(g_right + up + k, 1, 3);
                __builtin_prefetch(g_left + down + k, 1, 3);
            }
        }
        const int64_t at = places ? places[e] : e;
        real s = 0;
        if (task == SPREAD) {
            s = slopes[at];
        } else {
            for (int64_t k = 0; k < r; k++)
                s += left[i + k] * right[j + k];
            s -= values[e];
            if (row_shifts)
                s += row_shifts[rows[e]] + col_shifts[cols[e]];
        }
        if (task == SAMPLE) {
            slopes[at] = s;
            continue;
        }
        if (task == SUMS) {
            if (weights)
                s *= weights[e];
            g_right[rows[e]] += s;
            g_left[cols[e]] += s;
            continue;
        }
        if (task == CONTRACT) {
            const real plain = s;
            if (weights)
                s *= weights[e];
            energy += (double)s * (double)plain;
        }
        for (int64_t k = 0; k < r; k++) {
            g_right[i + k] += s * right[j + k];
            g_left[j + k] += s * left[i + k];
        }
    }
    return energy;
}

/* Functions of their own: compilers trust `restrict` in the parameters of a function alone. */
#define DEFINE(NAME, TASK)                                                                        \
    static __attribute__((noinline)) double NAME(ARGUMENTS)                                       \
    {                                                                                             \
        return entries(TASK, first, end, last, rank, rows, cols, places, values, weights, left,   \
                       right, row_shifts, col_shifts, slopes, g_right, g_left);                   \
    }
DEFINE(contract_tile, CONTRACT)
DEFINE(sample_tile, SAMPLE)
DEFINE(spread_tile, SPREAD)
DEFINE(sums_tile, SUMS)

static inline __attribute__((always_inline)) void
tile(const Job *job, const int task, const int64_t sample, const int64_t number)
{
    const int64_t r = RANK ? RANK : job->rank, tiles = job->row_bands * job->col_bands;
    const int64_t up = sample * job->m * r, down = sample * job->n * r;
    const int64_t at = sample * job->count, wide = task == SUMS ? 1 : r;
    double energy = (task == CONTRACT ? contract_tile : task == SAMPLE ? sample_tile
                     : task == SPREAD ? spread_tile : sums_tile)(
        job->starts[number], job->starts[number + 1], job->starts[tiles] - 1, r, job->rows,
        job->cols, job->places, job->values + (job->shared ? 0 : at), job->weights,
        job->left + up, job->right + down,
        job->row_shifts ? job->row_shifts + sample * job->m : 0,
        job->row_shifts ? job->col_shifts + sample * job->n : 0, job->slopes + at,
        job->g_right + sample * job->m * wide, job->g_left + sample * job->n * wide);
    if (task == CONTRACT)
        job->energies[sample * tiles + number] = energy;
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Set to zero the rows of a band in a matrix of `rows` rows. */
static void clear(real *x, int64_t r, int64_t rows, int64_t size, int64_t band)
{
    const int64_t from = band * size, to = least(rows, from + size);
    memset(x + from * r, 0, (size_t)((to - from) * r) * sizeof(real));
}

static inline __attribute__((always_inline)) void work(Job *job, const int task)
{
    const int64_t r = task == SUMS ? 1 : RANK ? RANK : job->rank, bands = job->row_bands;
    for (;;) {
        const int64_t claim = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
        if (claim >= job->samples * bands)
            return;
        const int64_t sample = claim / bands, band = claim % bands;
        int32_t *finished = job->finished + sample * job->col_bands;
        if (task != SAMPLE)
            clear(job->g_right + sample * job->m * r, r, job->m, job->height, band);
        for (int64_t col = 0; col < job->col_bands; col++) {
            if (task != SAMPLE) {
                for (int spins = 0; __atomic_load_n(&finished[col], __ATOMIC_ACQUIRE) < band;)
                    if (++spins > 2000)
                        sched_yield();
                if (band == 0)
                    clear(job->g_left + sample * job->n * r, r, job->n, job->width, col);
            }
            tile(job, task, sample, band * job->col_bands + col);
            if (task != SAMPLE)
                __atomic_store_n(&finished[col], (int32_t)band + 1, __ATOMIC_RELEASE);
        }
    }
}

void contract(Job *job) { work(job, CONTRACT); }
void sample(Job *job) { work(job, SAMPLE); }
void spread(Job *job) { work(job, SPREAD); }
void sums(Job *job) { work(job, SUMS); }
