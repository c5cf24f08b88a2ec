#include <algorithm>
#include <cmath>
#include <limits>

#include "clones.hpp"
#include "interpolation.hpp"
#include "parallel.hpp"
#include "scale.hpp"

namespace onnxcam {
namespace {

constexpr std::size_t ahead = 3;  // rows

/// Takes an output row into the running extremes of its columns.
ONNXCAM_CLONES
void include_row(const float* top, const float* bottom, float t, float* ONNXCAM_RESTRICT lowest,
                 float* ONNXCAM_RESTRICT highest, std::size_t W) {
    for (std::size_t i = 0; i < W; ++i) {
        const float value = top[i] + t * (bottom[i] - top[i]);
        lowest[i] = value < lowest[i] ? value : lowest[i];
        highest[i] = value > highest[i] ? value : highest[i];
    }
}

/// The lines of a row that will be written: a new map's memory is in no cache, and a store waits for it.
void prefetch_row(const float* row, std::size_t W) {
    constexpr std::size_t line = 64 / sizeof(float);
    for (std::size_t i = 0; i < W; i += line) ONNXCAM_PREFETCH_FOR_WRITE(row + i);
}

ONNXCAM_CLONES
void scaled_row(const float* top, const float* bottom, float t, float lowest, float scale,
                float* ONNXCAM_RESTRICT out, std::size_t W) {
    for (std::size_t i = 0; i < W; ++i) out[i] = (top[i] + t * (bottom[i] - top[i]) - lowest + 0.0F) * scale;
}

}  // namespace

void saliency_maps(const float* raws, float* out, std::size_t N, std::size_t h, std::size_t w, std::size_t H,
                   std::size_t W, Affine y, Affine x, float epsilon, int threads) {
    if (N == 0) return;
    const Axis rows = sample_axis(h, H, y);
    const Axis columns = sample_axis(w, W, x);
    const std::size_t bands = (H + band - 1) / band;
    const std::size_t tasks = N * bands;
    const std::size_t workers = worker_count(threads, tasks, N * H * W);
    std::vector<float> scratch(workers * 4 * W);  // per worker: two sampled rows, lowest and highest of each column
    std::vector<float> maps(N * h * w), lowest(N), scale(N);

    for (std::size_t i = 0; i < maps.size(); ++i) maps[i] = raws[i] <= 0.0F ? 0.0F : raws[i];
    min_max(maps.data(), maps.data(), N, h * w, epsilon);

    const auto find_extremes = [&](std::size_t n, std::size_t worker) {
        float* const low = scratch.data() + (worker * 4 + 2) * W;
        float* const high = low + W;
        SampledRows sampled(maps.data() + n * h * w, w, columns, low - 2 * W);
        std::fill_n(low, W, std::numeric_limits<float>::infinity());
        std::fill_n(high, W, -std::numeric_limits<float>::infinity());
        const auto same_sources = [&](std::size_t a, std::size_t b) {
            return rows.lower[a] == rows.lower[b] && rows.upper[a] == rows.upper[b];
        };
        for (std::size_t row = 0; row < H; ++row) {
            // Between two source rows each column only rises or only falls, rounded as it is: the ends are enough.
            const bool inside = row > 0 && row + 1 < H && same_sources(row - 1, row) && same_sources(row, row + 1);
            if (!inside) include_row(sampled(rows.lower[row]), sampled(rows.upper[row]), rows.t[row], low, high, W);
        }
        lowest[n] = *std::min_element(low, low + W);
        scale[n] = min_max_scale(*std::max_element(high, high + W) - lowest[n], epsilon);
    };
    const auto write_rows = [&](std::size_t n, std::size_t first, std::size_t last, std::size_t worker) {
        const float* const map = maps.data() + n * h * w;
        float* const target = out + n * H * W;
        if (std::isnan(*map) || scale[n] == 0.0F) {  // one NaN is all NaN after min_max
            std::fill(target + first * W, target + last * W, std::isnan(*map) ? *map : 0.0F);
            return;
        }
        SampledRows sampled(map, w, columns, scratch.data() + worker * 4 * W);
        for (std::size_t row = first; row < last; ++row) {
            if (row + ahead < last) prefetch_row(target + (row + ahead) * W, W);
            scaled_row(sampled(rows.lower[row]), sampled(rows.upper[row]), rows.t[row], lowest[n], scale[n],
                       target + row * W, W);
        }
    };

    if (N >= 4 * workers) {  // whole maps share out evenly enough, and threads are started once
        parallel_for(N, workers, [&](std::size_t n, std::size_t worker) {
            find_extremes(n, worker);
            write_rows(n, 0, H, worker);
        });
        return;
    }
    parallel_for(N, std::min(N, workers), find_extremes);
    parallel_for(tasks, workers, [&](std::size_t task, std::size_t worker) {
        const std::size_t first = task % bands * band;
        write_rows(task / bands, first, std::min(first + band, H), worker);
    });
}

}  // namespace onnxcam
