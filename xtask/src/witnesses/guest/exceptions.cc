// C++ exceptions through many frames, destructors on the way, virtual calls, and threads that share memory by locks and
// atomics. Prints one line for each.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

static int alive;

struct Guard {
    Guard() { alive++; }
    ~Guard() { alive--; }
};

static int thrower(int depth, int kind) {
    Guard guard;
    if (depth == 0) {
        switch (kind % 4) {
        case 0: throw kind;
        case 1: throw std::runtime_error("runtime " + std::to_string(kind));
        case 2: throw std::string("text");
        default: return std::vector<int>(3).at(kind);
        }
    }
    try {
        return thrower(depth - 1, kind) + 1;
    } catch (const std::string &text) {
        if (depth % 5 == 0) throw std::logic_error(text + "!");
        throw;
    }
}

static void exceptions() {
    std::map<std::string, int> seen;
    for (int i = 0; i < 4000; i++) {
        try {
            thrower(i % 23, i);
        } catch (int number) {
            seen["int"] += number;
        } catch (const std::out_of_range &) {
            seen["range"]++;
        } catch (const std::exception &error) {
            seen[error.what()[0] == 'r' ? "runtime" : error.what()]++;
        } catch (const std::string &) {
            seen["string"]++;
        }
    }
    for (auto &[name, count] : seen) printf("exceptions %s %d\n", name.c_str(), count);
    printf("exceptions leave %d guards\n", alive);
}

static void atomics() {
    std::atomic<unsigned long> plain{0}, swapped{0};
    std::mutex mutex;
    unsigned long locked = 0;
    std::vector<std::thread> threads;
    for (int t = 0; t < 16; t++)
        threads.emplace_back([&, t] {
            for (int i = 0; i < 5000; i++) {
                plain += t;
                unsigned long old = swapped;
                while (!swapped.compare_exchange_weak(old, old + 1)) {}
                if (i % 16 == 0) {
                    std::lock_guard<std::mutex> hold(mutex);
                    locked += i;
                }
            }
        });
    for (auto &thread : threads) thread.join();
    printf("atomics %lu %lu %lu\n", plain.load(), swapped.load(), locked);
}

static void ping_pong() {
    std::mutex mutex;
    std::condition_variable turned;
    int turn = 0, sum = 0;
    auto player = [&](int who) {
        for (int i = 0; i < 2000; i++) {
            std::unique_lock<std::mutex> hold(mutex);
            turned.wait(hold, [&] { return turn == who; });
            sum = sum * 3 % 1000003 + who;
            turn = 1 - who;
            turned.notify_one();
        }
    };
    std::thread one(player, 0), other(player, 1);
    one.join();
    other.join();
    printf("ping-pong %d\n", sum);
}

struct Shape {
    virtual ~Shape() = default;
    virtual double area() const = 0;
};
struct Square : Shape {
    double side;
    explicit Square(double s) : side(s) {}
    double area() const override { return side * side; }
};
struct Circle : Shape {
    double radius;
    explicit Circle(double r) : radius(r) {}
    double area() const override { return 3.14159265358979 * radius * radius; }
};

int main() {
    exceptions();
    atomics();
    ping_pong();
    std::vector<std::unique_ptr<Shape>> shapes;
    for (int i = 0; i < 50000; i++)
        if (i * 7 % 3) shapes.push_back(std::make_unique<Square>(i * 0.5));
        else shapes.push_back(std::make_unique<Circle>(i * 0.25));
    std::sort(shapes.begin(), shapes.end(), [](auto &a, auto &b) { return a->area() < b->area(); });
    double sum = std::accumulate(shapes.begin(), shapes.end(), 0.0, [](double s, auto &shape) { return s / 2 + shape->area(); });
    printf("shapes %.12g\n", sum);
}
