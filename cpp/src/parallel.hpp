#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <thread>
#include <vector>

namespace onnxcam {

/// How many workers `threads` means (see kernels.hpp) for `tasks` tasks of together `operations` pixel operations.
inline std::size_t worker_count(int threads, std::size_t tasks, std::size_t operations) {
    // Some 200 us of work: several times what starting and joining a thread costs.
    constexpr std::size_t operations_per_thread = std::size_t{1} << 19;
    const std::size_t worth = std::min(tasks, operations / operations_per_thread);
    if (worth <= 1 || threads == 1) return 1;
    // Asked for last: it reads a file.
    return std::min(worth, threads > 1 ? static_cast<std::size_t>(threads)
                                       : std::max<std::size_t>(1, std::thread::hardware_concurrency()));
}

/// Calls body(task, worker) once for each task < tasks, worker < workers, the caller being worker 0. body must not
/// throw.
template <class Body>
void parallel_for(std::size_t tasks, std::size_t workers, const Body& body) {
    std::atomic<std::size_t> next{0};
    const auto work = [&](std::size_t worker) {
        for (std::size_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) body(task, worker);
    };
    std::vector<std::thread> helpers;
    helpers.reserve(workers - 1);
    try {
        for (std::size_t worker = 1; worker < workers; ++worker) helpers.emplace_back(work, worker);
    } catch (const std::exception&) {  // no more threads to be had: those there are share the tasks
    }
    work(0);
    for (std::thread& helper : helpers) helper.join();
}

}  // namespace onnxcam
