#include <algorithm>
#include <cmath>

#include "clones.hpp"
#include "interpolation.hpp"
#include "parallel.hpp"

namespace onnxcam {
namespace {

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

const float* SampledRows::operator()(std::int32_t row) {
    const int slot = row & 1;
    if (held_[slot] != row) {
        sample_row(map_ + static_cast<std::size_t>(row) * w_, columns_.lower.data(), columns_.upper.data(),
                   columns_.t.data(), slots_[slot], columns_.t.size());
        held_[slot] = row;
    }
    return slots_[slot];
}

void resize_bilinear(const float* maps, float* out, std::size_t N, std::size_t h, std::size_t w, std::size_t H,
                     std::size_t W, Affine y, Affine x, int threads) {
    if (N == 0) return;
    const Axis rows = sample_axis(h, H, y);
    const Axis columns = sample_axis(w, W, x);
    const std::size_t bands = (H + band - 1) / band;
    const std::size_t tasks = N * bands;
    const std::size_t workers = worker_count(threads, tasks, N * H * W);
    std::vector<float> slots(workers * 2 * W);

    parallel_for(tasks, workers, [&](std::size_t task, std::size_t worker) {
        SampledRows sampled(maps + task / bands * h * w, w, columns, slots.data() + worker * 2 * W);
        float* const target = out + task / bands * H * W;
        const std::size_t first = task % bands * band;
        for (std::size_t row = first; row < std::min(first + band, H); ++row) {
            blend_rows(sampled(rows.lower[row]), sampled(rows.upper[row]), rows.t[row], target + row * W, W);
        }
    });
}

}  // namespace onnxcam
