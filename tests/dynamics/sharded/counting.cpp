// The compiled pass of `tiles.c` over numbers that count the operations on them.
#include <cstdint>

static int64_t done = 0;

struct Counted {
    double x;
    Counted() = default;
    Counted(double a) : x(a) {}
    operator double() const { return x; }
    Counted &operator+=(const Counted &b) { return done++, x += b.x, *this; }
    Counted &operator-=(const Counted &b) { return done++, x -= b.x, *this; }
    Counted &operator*=(const Counted &b) { return done++, x *= b.x, *this; }
};

static inline Counted operator*(const Counted &a, const Counted &b) { return done++, a.x * b.x; }
static inline Counted operator+(const Counted &a, const Counted &b) { return done++, a.x + b.x; }

#define restrict __restrict__
#define REAL Counted
#define RANK 0
extern "C" {
int64_t operations(void) { return done; }
#include "tiles.c"
}
