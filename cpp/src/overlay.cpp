#include <algorithm>

#include "clones.hpp"
#include "onnxcam/kernels.hpp"

namespace onnxcam {
namespace {

constexpr std::size_t tile = 256;  // pixels whose colours are looked up before they are blended

/// `tint` is (256, 3): opacity * colormap.
ONNXCAM_CLONES
void overlay_tile(const std::uint8_t* ONNXCAM_RESTRICT picture, const float* ONNXCAM_RESTRICT values,
                  const float* ONNXCAM_RESTRICT tint, float keep, std::uint8_t* ONNXCAM_RESTRICT out,
                  std::size_t count) {
    std::int32_t index[tile];
    for (std::size_t i = 0; i < count; ++i) {
        const float v = values[i];
        const float clamped = v > 0.0F ? (v < 1.0F ? v : 1.0F) : 0.0F;
        index[i] = static_cast<std::int32_t>(clamped * 255.0F + 0.5F);
    }
    float colour[3 * tile];
    for (std::size_t i = 0; i < count; ++i) {
        for (std::size_t channel = 0; channel < 3; ++channel) {
            colour[3 * i + channel] = tint[3 * static_cast<std::size_t>(index[i]) + channel];
        }
    }
    for (std::size_t i = 0; i < 3 * count; ++i) {
        const float blend = keep * static_cast<float>(picture[i]) + colour[i];
        out[i] = static_cast<std::uint8_t>(static_cast<std::int32_t>(blend + 0.5F));
    }
    for (std::size_t i = 0; i < count; ++i) {
        if (values[i] != values[i]) std::copy_n(picture + 3 * i, 3, out + 3 * i);
    }
}

}  // namespace

void overlay(const std::uint8_t* picture, const float* values, const std::uint8_t* colormap, float opacity,
             std::uint8_t* out, std::size_t pixels) {
    float tint[3 * 256];
    for (std::size_t i = 0; i < 3 * 256; ++i) tint[i] = opacity * static_cast<float>(colormap[i]);
    for (std::size_t first = 0; first < pixels; first += tile) {
        overlay_tile(picture + 3 * first, values + first, tint, 1.0F - opacity, out + 3 * first,
                     std::min(tile, pixels - first));
    }
}

}  // namespace onnxcam
