/* Computation of every kind that a compiler emits: integers of all widths, shifts, division, floats, structures by value,
   switch tables, calls through pointers, varargs, long double, recursion. Prints one line for each. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t seed = 88172645463325252u;

static uint64_t next(void) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

static void integers(void) {
    uint64_t sum = 0;
    for (int i = 0; i < 200000; i++) {
        uint64_t a = next(), b = next() | 1;
        unsigned shift = a & 63;
        sum += a / b + (uint32_t)a % (uint32_t)b + (int16_t)a * (int8_t)b;
        sum ^= (a << shift) | (b >> (shift ^ 63));
        sum += (int64_t)a >> (shift & 31);
        sum -= (int32_t)a / ((int32_t)b | 1) + (uint8_t)a / ((uint8_t)b | 1);
        sum = a > b ? sum + (a & b) : sum * 3 + (a | b);
        sum += (int64_t)a < (int64_t)b ? (uint16_t)a : (uint8_t)b;
    }
    printf("integers %016llx\n", (unsigned long long)sum);
}

static void floats(void) {
    double d = 0.25;
    float f = 0.5f;
    long double l = 0.125L;
    for (int i = 1; i < 100000; i++) {
        d = 3.7 * d * (1 - d);
        f = f * 1.0001f + (float)(i % 7) - f / 3;
        l = l * 1.000001L + 1 / (long double)i;
        d += (double)(int64_t)(next() >> 40) * 1e-18;
        if (d > 0.99 || d < 0.01) d = 0.3;
    }
    printf("floats %.17g %.9g %.20Lg\n", d, f, l);
    printf("rounded %lld %lld %ld %.1f\n", llrint(2.5), llrint(3.5), lround(-2.5), nearbyint(-0.4));
    printf("special %g %g %g %d %d\n", 1 / (d - d), sqrt(2), fmod(-7.5, 2), isnan(0.0 / (d - d)), 1.0 < NAN);
}

struct pair { unsigned long a; double b; char name[24]; };

static struct pair twisted(struct pair p, int depth) {
    if (depth == 0) return p;
    struct pair q = { p.a * 3 + depth, p.b / 2 + depth, "" };
    snprintf(q.name, sizeof q.name, "%s%c", strlen(p.name) < 20 ? p.name : "", 'a' + depth % 26);
    return twisted(q, depth - 1);
}

static long sum_of(int count, ...) {
    va_list list;
    va_start(list, count);
    double sum = 0;
    for (int i = 0; i < count; i++) sum += i % 2 ? va_arg(list, double) : va_arg(list, int);
    va_end(list);
    return (long)(sum * 1000);
}

static int by_number(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static unsigned machine(const unsigned char *code, unsigned steps) {
    unsigned a = 1, pc = 0;
    while (steps--) {
        switch (code[pc++ & 255] % 11) {
        case 0: a += 7; break;
        case 1: a ^= a << 5; break;
        case 2: a = a >> 3 | a << 29; break;
        case 3: a *= 2654435761u; break;
        case 4: pc += a & 15; break;
        case 5: a -= pc; break;
        case 6: a = ~a; break;
        case 7: if (a & 1) pc += 3; break;
        case 8: a = a % 65521 + a; break;
        case 9: a |= 0x1001; break;
        default: a = (a & 0xff) << 24 | (a & 0xff00) << 8 | (a >> 8 & 0xff00) | a >> 24; break;
        }
    }
    return a;
}

static jmp_buf back;

static void dive(int depth) {
    volatile char ballast[64];
    ballast[depth % 64] = (char)depth;
    if (depth == 0) longjmp(back, 1 + ballast[0]);
    dive(depth - 1);
    ballast[0]++;
}

int main(void) {
    integers();
    floats();
    struct pair p = twisted((struct pair){ 1, 1.5, "p" }, 300);
    printf("structures %lu %.12g %s\n", p.a, p.b, p.name);
    printf("arguments %ld\n", sum_of(8, 1, 2.5, 3, 4.25, 5, 6.125, 7, 8.0625));
    static uint64_t numbers[100000];
    for (int i = 0; i < 100000; i++) numbers[i] = next();
    qsort(numbers, 100000, sizeof *numbers, by_number);
    uint64_t mix = 0;
    for (int i = 0; i < 100000; i++) mix = mix * 31 + numbers[i];
    printf("sorted %016llx\n", (unsigned long long)mix);
    unsigned char code[256];
    for (int i = 0; i < 256; i++) code[i] = (unsigned char)next();
    printf("machine %08x\n", machine(code, 3000000));
    int rounds = 0;
    for (volatile int i = 0; i < 2000; i++) {
        if (setjmp(back) == 0) dive(i % 50);
        else rounds++;
    }
    printf("jumps %d\n", rounds);
    char text[4096] = "";
    for (int i = 0; i < 200; i++) sprintf(text + strlen(text), "%x,", (unsigned)next() & 0xffff);
    char *copy = malloc(8192);
    memcpy(copy, text, sizeof text);
    memmove(copy + 3, copy, 3000);
    printf("strings %zu %d %ld\n", strlen(copy), strcmp(copy, text), (long)(strstr(copy, "ff") - copy));
    free(copy);
    return 0;
}
