#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "onnxcam/kernels.hpp"

namespace onnxcam {

/// Per output pixel of one axis: v[lower] + t * (v[upper] - v[lower]).
struct Axis {
    std::vector<std::int32_t> lower;
    std::vector<std::int32_t> upper;
    std::vector<float> t;
};

Axis sample_axis(std::size_t source, std::size_t size, Affine affine);

/// Source rows of one map sampled along x, even ones in slot 0, odd ones in slot 1, reused while output rows need
/// them.
class SampledRows {
  public:
    /// `slots` is scratch for 2 * W floats.
    SampledRows(const float* map, std::size_t w, const Axis& columns, float* slots)
        : map_(map), w_(w), columns_(columns), slots_{slots, slots + columns.t.size()} {}

    const float* operator()(std::int32_t row);

  private:
    const float* map_;
    std::size_t w_;
    const Axis& columns_;
    float* slots_[2];
    std::int32_t held_[2] = {-1, -1};
};

constexpr std::size_t band = 64;  // output rows per task

}  // namespace onnxcam
