#pragma once

#include <cmath>

#include "onnxcam/kernels.hpp"

namespace onnxcam {

/// What `min_max` multiplies by, 1 / (epsilon + width); 0 where there is nothing to scale.
inline float min_max_scale(float width, float epsilon) {
    const float scale = 1.0F / (epsilon + width);
    return width == 0.0F || std::isinf(scale) ? 0.0F : scale;
}

}  // namespace onnxcam
