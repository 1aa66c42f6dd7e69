/* Processes, memory and signals: fork, exec, wait, pipes, copy on write, mmap and mprotect, faults that a handler mends,
   handlers on a stack of their own, timers, code that is written and rewritten while it runs. Prints one line for each. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

enum { PAGE = 4096 };

static void forks(char *self) {
    int sum = 0;
    for (int i = 0; i < 300; i++) {
        pid_t child = fork();
        if (child == 0) {
            if (i % 10 == 0) {
                char number[16];
                sprintf(number, "%d", i % 256);
                execl(self, self, number, (char *)NULL);
            }
            _exit(i % 256);
        }
        int status;
        if (waitpid(child, &status, 0) != child || !WIFEXITED(status)) abort();
        sum += WEXITSTATUS(status);
    }
    printf("forks %d\n", sum);
}

static void copy_on_write(void) {
    enum { PAGES = 512 };
    unsigned char *memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < PAGES * PAGE; i += 64) memory[i] = (unsigned char)(i >> 6);
    int back[2];
    if (pipe(back)) abort();
    for (int child = 0; child < 8; child++)
        if (fork() == 0) {
            unsigned sum = 0;
            for (int i = 0; i < PAGES * PAGE; i += 64) {
                memory[i] = (unsigned char)(memory[i] + child);
                sum = sum * 31 + memory[i];
            }
            if (write(back[1], &sum, sizeof sum) != sizeof sum) abort();
            _exit(0);
        }
    unsigned all = 0, one, own = 0;
    for (int child = 0; child < 8; child++) {
        if (read(back[0], &one, sizeof one) != sizeof one) abort();
        all += one;
    }
    while (wait(NULL) > 0) {}
    for (int i = 0; i < PAGES * PAGE; i += 64) own = own * 31 + memory[i];
    printf("copy on write %08x %08x\n", all, own);
    munmap(memory, PAGES * PAGE);
}

static unsigned char *watched;
static volatile int mended;

static void mend(int number, siginfo_t *info, void *context) {
    (void)context;
    unsigned char *page = (unsigned char *)((uintptr_t)info->si_addr & ~(uintptr_t)(PAGE - 1));
    if (number != SIGSEGV || page < watched || page >= watched + 256 * PAGE) abort();
    if (mprotect(page, PAGE, PROT_READ | PROT_WRITE)) abort();
    mended++;
}

static void faults(void) {
    struct sigaction action = { .sa_sigaction = mend, .sa_flags = SA_SIGINFO };
    sigaction(SIGSEGV, &action, NULL);
    watched = mmap(NULL, 256 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < 256; i++) watched[i * PAGE + i] += (unsigned char)i;
        uint64_t across;
        memcpy(&across, watched + 10 * PAGE - 4, 8);
        across++;
        mprotect(watched, 256 * PAGE, round % 2 ? PROT_NONE : PROT_READ);
        memcpy(watched + 20 * PAGE - 4, &across, 8);
    }
    printf("faults %d\n", mended);
    signal(SIGSEGV, SIG_DFL);
    munmap(watched, 256 * PAGE);
}

static void skip(int number, siginfo_t *info, void *context) {
    (void)info;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    registers[REG_RBX] += number;
    /* UD2 and DIV RCX with its prefix are 2 and 3 bytes long; INT3 has been passed already. */
    registers[REG_RIP] += number == SIGILL ? 2 : number == SIGFPE ? 3 : 0;
}

static void skipped(void) {
    struct sigaction action = { .sa_sigaction = skip, .sa_flags = SA_SIGINFO | SA_ONSTACK };
    stack_t stack = { .ss_sp = malloc(65536), .ss_size = 65536 };
    sigaltstack(&stack, NULL);
    sigaction(SIGILL, &action, NULL);
    sigaction(SIGFPE, &action, NULL);
    sigaction(SIGTRAP, &action, NULL);
    long sum = 0;
    for (int i = 0; i < 500; i++) {
        long counted = i;
        __asm__ volatile("ud2\n\tint3\n\txor %%edx, %%edx\n\txor %%ecx, %%ecx\n\tdiv %%rcx"
                         : "+b"(counted) : : "rax", "rcx", "rdx", "cc");
        sum += counted;
    }
    printf("skipped %ld\n", sum);
}

static jmp_buf out;

static void overflow_handler(int number) { siglongjmp(out, number); }

static int overflow(int depth) {
    volatile char page[PAGE];
    page[depth % PAGE] = 1;
    return overflow(depth + 1) + page[0];
}

static void stack_overflows(void) {
    struct sigaction action = { .sa_handler = overflow_handler, .sa_flags = SA_ONSTACK };
    sigaction(SIGSEGV, &action, NULL);
    volatile int times = 0;
    for (volatile int i = 0; i < 5; i++)
        if (sigsetjmp(out, 1) == 0) overflow(0);
        else times++;
    printf("stack overflows %d\n", times);
    signal(SIGSEGV, SIG_DFL);
}

static volatile sig_atomic_t ticks;

static void tick(int number) { ticks += number == SIGALRM; }

static void interrupted_computation(void) {
    signal(SIGALRM, tick);
    struct itimerval often = { { 0, 2000 }, { 0, 2000 } }, never = { { 0, 0 }, { 0, 0 } };
    setitimer(ITIMER_REAL, &often, NULL);
    double x = 0.5;
    uint64_t carry = 1;
    long rounds = 0;
    /* Whatever is interrupted must find its registers, flags and floats again. */
    while (ticks < 100 || rounds % 100000) {
        x = 3.9 * x * (1 - x);
        carry = carry * 6364136223846793005u + 1442695040888963407u;
        if (++rounds % 100000 == 0) {
            if (x < 0 || x > 1) abort();
        }
    }
    setitimer(ITIMER_REAL, &never, NULL);
    double again = 0.5;
    uint64_t expected = 1;
    for (long i = 0; i < rounds; i++) {
        again = 3.9 * again * (1 - again);
        expected = expected * 6364136223846793005u + 1442695040888963407u;
    }
    printf("interrupted computation %s\n", again == x && expected == carry ? "is the same" : "DIFFERS");
}

static void generated_code(void) {
    unsigned char *code = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    long sum = 0;
    for (int i = 0; i < 2000; i++) {
        unsigned char program[] = { 0xb8, 0, 0, 0, 0, 0x01, 0xf8, 0xc3 }; /* mov eax, i; add eax, edi; ret */
        memcpy(program + 1, &i, 4);
        memcpy(code + i % 3 * 16, program, sizeof program);
        sum += ((int (*)(int))(uintptr_t)(code + i % 3 * 16))(i * 2);
        code[i % 3 * 16 + 5] = 0x29; /* now sub eax, edi */
        sum += ((int (*)(int))(uintptr_t)(code + i % 3 * 16))(i);
    }
    printf("generated code %ld\n", sum);
    munmap(code, PAGE);
}

static void pipeline(void) {
    int to[2], from[2];
    if (pipe(to) || pipe(from)) abort();
    if (fork() == 0) {
        close(to[1]);
        unsigned value;
        while (read(to[0], &value, sizeof value) == sizeof value) {
            value = value * 1664525 + 1013904223;
            if (write(from[1], &value, sizeof value) != sizeof value) abort();
        }
        _exit(0);
    }
    unsigned value = 1;
    for (int i = 0; i < 3000; i++)
        if (write(to[1], &value, sizeof value) != sizeof value || read(from[0], &value, sizeof value) != sizeof value) abort();
    close(to[1]);
    wait(NULL);
    printf("pipeline %08x\n", value);
}

int main(int count, char **arguments) {
    if (count == 2) return atoi(arguments[1]);
    /* A child must not print again what its parent has not printed yet. */
    setvbuf(stdout, NULL, _IOLBF, 0);
    forks(arguments[0]);
    copy_on_write();
    faults();
    skipped();
    stack_overflows();
    interrupted_computation();
    generated_code();
    pipeline();
    return 0;
}
