#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "clones.hpp"
#include "onnxcam/kernels.hpp"
#include "parallel.hpp"

namespace onnxcam {
namespace {

constexpr std::size_t band = 64;  // output rows per task

/// Per output pixel of one axis: v[lower] + t * (v[upper] - v[lower]).
struct Axis {
    std::vector<std::int32_t> lower;
    std::vector<std::int32_t> upper;
    std::vector<float> t;
};

Axis sample_axis(std::size_t source, std::size_t size, Affine affine) {
    Axis axis{std::vector<std::int32_t>(size), std::vector<std::int32_t>(size), std::vector<float>(size)};
    for (std::size_t i = 0; i < size; ++i) {
        const double coordinate = (static_cast<double>(i) + 0.5) * affine.scale + affine.offset - 0.5;
        const double clamped = std::clamp(coordinate, 0.0, static_cast<double>(source - 1));
        const auto lower = static_cast<std::int32_t>(clamped);
        axis.lower[i] = lower;
        axis.t[i] = static_cast<float>(clamped - lower);
        // A neighbour of weight 0 is not read: it may lie outside the map, and 0 * NaN is NaN.
        axis.upper[i] = axis.t[i] == 0.0F ? lower : lower + 1;
    }
    return axis;
}

ONNXCAM_CLONES
void sample_row(const float* ONNXCAM_RESTRICT source, const std::int32_t* ONNXCAM_RESTRICT lower,
                const std::int32_t* ONNXCAM_RESTRICT upper, const float* ONNXCAM_RESTRICT t,
                float* ONNXCAM_RESTRICT out, std::size_t W) {
    for (std::size_t i = 0; i < W; ++i) {
        const float left = source[lower[i]];
        out[i] = left + t[i] * (source[upper[i]] - left);
    }
}

ONNXCAM_CLONES
void blend_rows(const float* top, const float* bottom, float t, float* ONNXCAM_RESTRICT out, std::size_t W) {
    for (std::size_t i = 0; i < W; ++i) out[i] = top[i] + t * (bottom[i] - top[i]);
}

}  // namespace

void resize_bilinear(const float* maps, float* out, std::size_t N, std::size_t h, std::size_t w, std::size_t H,
                     std::size_t W, Affine y, Affine x, int threads) {
    if (N == 0) return;
    const Axis rows = sample_axis(h, H, y);
    const Axis columns = sample_axis(w, W, x);
    const std::size_t bands = (H + band - 1) / band;
    const std::size_t tasks = N * bands;
    const std::size_t workers = worker_count(threads, tasks, N * H * W);
    std::vector<float> sampled(workers * 2 * W);

    parallel_for(tasks, workers, [&](std::size_t task, std::size_t worker) {
        const float* map = maps + task / bands * h * w;
        float* const target = out + task / bands * H * W;
        const std::size_t first = task % bands * band;
        const std::size_t last = std::min(first + band, H);

        // Source rows sampled along x, even ones in slot 0, odd ones in slot 1, reused while output rows need them.
        float* const slots[2] = {sampled.data() + worker * 2 * W, sampled.data() + (worker * 2 + 1) * W};
        std::int32_t held[2] = {-1, -1};
        const auto sampled_row = [&](std::int32_t row) {
            const int slot = row & 1;
            if (held[slot] != row) {
                sample_row(map + static_cast<std::size_t>(row) * w, columns.lower.data(), columns.upper.data(),
                           columns.t.data(), slots[slot], W);
                held[slot] = row;
            }
            return slots[slot];
        };
        for (std::size_t row = first; row < last; ++row) {
            const float* top = sampled_row(rows.lower[row]);
            const float* bottom = sampled_row(rows.upper[row]);
            blend_rows(top, bottom, rows.t[row], target + row * W, W);
        }
    });
}

}  // namespace onnxcam
