#include <algorithm>
#include <cmath>
#include <limits>

#include "clones.hpp"
#include "scale.hpp"

namespace onnxcam {
namespace {

constexpr std::size_t lanes = 64;  // independent running extrema, so that the loop over them vectorises

struct Range {
    float lowest;
    float highest;
    bool has_nan;
};

ONNXCAM_CLONES
Range find_range(const float* map, std::size_t pixels) {
    float lowest[lanes], highest[lanes];
    int nan[lanes] = {};
    std::fill_n(lowest, lanes, map[0]);
    std::fill_n(highest, lanes, map[0]);
    const auto include = [&](std::size_t lane, float value) {
        lowest[lane] = value < lowest[lane] ? value : lowest[lane];
        highest[lane] = value > highest[lane] ? value : highest[lane];
        nan[lane] |= value != value;
    };
    std::size_t first = 0;
    for (; first + lanes <= pixels; first += lanes) {
        for (std::size_t lane = 0; lane < lanes; ++lane) include(lane, map[first + lane]);
    }
    for (std::size_t lane = 0; first + lane < pixels; ++lane) include(lane, map[first + lane]);
    return {*std::min_element(lowest, lowest + lanes), *std::max_element(highest, highest + lanes),
            std::any_of(nan, nan + lanes, [](int seen) { return seen != 0; })};
}

ONNXCAM_CLONES
void scale_map(const float* map, float* out, std::size_t pixels, float lowest, float scale) {
    // + 0 turns a negative zero, which depends on the order of the search for the minimum, into a positive one.
    for (std::size_t i = 0; i < pixels; ++i) out[i] = (map[i] - lowest + 0.0F) * scale;
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
        } else if (const float scale = min_max_scale(width, epsilon); scale == 0.0F) {
            std::fill_n(target, pixels, 0.0F);
        } else {
            scale_map(map, target, pixels, range.lowest, scale);
        }
    }
}

}  // namespace onnxcam
