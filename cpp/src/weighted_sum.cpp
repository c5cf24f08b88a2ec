#include <algorithm>

#include "clones.hpp"
#include "onnxcam/kernels.hpp"
#include "parallel.hpp"

namespace onnxcam {
namespace {

constexpr std::size_t tile = 512;  // float64 accumulators that stay in the first-level cache

/// One tile of one sample: `count` <= tile pixels. Channels are `pixels` apart in `activations`; alpha is a
/// number per channel, or `pixels` numbers if `per_pixel`.
ONNXCAM_CLONES
void sum_tile(const float* ONNXCAM_RESTRICT activations, const float* ONNXCAM_RESTRICT alpha, bool per_pixel,
              float* ONNXCAM_RESTRICT map, std::size_t K, std::size_t pixels, std::size_t count, bool relu) {
    double sum[tile] = {};
    std::size_t k = 0;
    if (per_pixel) {
        for (; k < K; ++k) {
            const float* a = activations + k * pixels;
            const float* weight = alpha + k * pixels;
            for (std::size_t i = 0; i < count; ++i) {
                sum[i] += static_cast<double>(weight[i]) * static_cast<double>(a[i]);
            }
        }
    } else {
        // Four channels at a time: a quarter of the loads and stores of sum, added in the same order.
        for (; k + 4 <= K; k += 4) {
            const float* a = activations + k * pixels;
            const float* b = a + pixels;
            const float* c = b + pixels;
            const float* d = c + pixels;
            const double wa = alpha[k], wb = alpha[k + 1], wc = alpha[k + 2], wd = alpha[k + 3];
            for (std::size_t i = 0; i < count; ++i) {
                sum[i] = (((sum[i] + wa * static_cast<double>(a[i])) + wb * static_cast<double>(b[i])) +
                          wc * static_cast<double>(c[i])) +
                         wd * static_cast<double>(d[i]);
            }
        }
        for (; k < K; ++k) {
            const float* a = activations + k * pixels;
            const double weight = alpha[k];
            for (std::size_t i = 0; i < count; ++i) sum[i] += weight * static_cast<double>(a[i]);
        }
    }
    for (std::size_t i = 0; i < count; ++i) {
        const float value = static_cast<float>(sum[i]);
        map[i] = relu && value <= 0.0F ? 0.0F : value;  // false for NaN, which stays
    }
}

}  // namespace

void weighted_sum(const float* activations, const float* alpha, AlphaLayout layout, float* maps, std::size_t N,
                  std::size_t K, std::size_t pixels, bool relu, int threads) {
    const std::size_t tiles = (pixels + tile - 1) / tile;
    const std::size_t tasks = N * tiles;
    const std::size_t per_channel = layout.per_pixel ? pixels : 1;
    parallel_for(tasks, worker_count(threads, tasks, N * K * pixels), [=](std::size_t task, std::size_t) {
        const std::size_t n = task / tiles;
        const std::size_t first = task % tiles * tile;
        const float* weights = alpha + (layout.per_sample ? n * K * per_channel : 0);
        sum_tile(activations + n * K * pixels + first, weights + (layout.per_pixel ? first : 0), layout.per_pixel,
                 maps + n * pixels + first, K, pixels, std::min(tile, pixels - first), relu);
    });
}

}  // namespace onnxcam
