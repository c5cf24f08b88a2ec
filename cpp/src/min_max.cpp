#include <algorithm>
#include <cmath>
#include <limits>

#include "clones.hpp"
#include "onnxcam/kernels.hpp"

namespace onnxcam {
namespace {

constexpr std::size_t lanes = 32;  // independent running extrema, so that the loop over them vectorises

struct Range {
    float lowest;
    float highest;
    bool has_nan;
};

ONNXCAM_CLONES
Range find_range(const float* map, std::size_t pixels) {
    float lowest[lanes], highest[lanes];
    int nan[lanes] = {};
    std::fill_n(lowest, lanes, std::numeric_limits<float>::infinity());
    std::fill_n(highest, lanes, -std::numeric_limits<float>::infinity());
    for (std::size_t first = 0; first < pixels; first += lanes) {
        const float* v = map + first;
        const std::size_t count = std::min(lanes, pixels - first);
        for (std::size_t i = 0; i < count; ++i) {
            lowest[i] = v[i] < lowest[i] ? v[i] : lowest[i];
            highest[i] = v[i] > highest[i] ? v[i] : highest[i];
            nan[i] |= v[i] != v[i];
        }
    }
    return {*std::min_element(lowest, lowest + lanes), *std::max_element(highest, highest + lanes),
            std::any_of(nan, nan + lanes, [](int seen) { return seen != 0; })};
}

ONNXCAM_CLONES
void scale_map(const float* map, float* out, std::size_t pixels, float lowest, float divisor) {
    // + 0 turns a negative zero, which depends on the order of the search for the minimum, into a positive one.
    for (std::size_t i = 0; i < pixels; ++i) out[i] = (map[i] - lowest + 0.0F) / divisor;
}

}  // namespace

void min_max(const float* maps, float* out, std::size_t N, std::size_t pixels, float epsilon) {
    for (std::size_t n = 0; n < N; ++n) {
        const float* map = maps + n * pixels;
        float* target = out + n * pixels;
        const Range range = find_range(map, pixels);
        const float width = range.highest - range.lowest;
        if (range.has_nan || !std::isfinite(width)) {
            std::fill_n(target, pixels, std::numeric_limits<float>::quiet_NaN());
        } else if (width == 0.0F) {
            std::fill_n(target, pixels, 0.0F);
        } else {
            scale_map(map, target, pixels, range.lowest, epsilon + width);
        }
    }
}

}  // namespace onnxcam
