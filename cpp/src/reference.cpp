#include "reference.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace onnxcam::reference {

void weighted_sum(const float* activations, const float* alpha, AlphaLayout layout, float* maps, std::size_t N,
                  std::size_t K, std::size_t pixels, bool relu) {
    for (std::size_t n = 0; n < N; ++n) {
        for (std::size_t i = 0; i < pixels; ++i) {
            double sum = 0.0;
            for (std::size_t k = 0; k < K; ++k) {
                const std::size_t channel = (layout.per_sample ? n * K : 0) + k;
                const double weight = layout.per_pixel ? alpha[channel * pixels + i] : alpha[channel];
                sum += weight * static_cast<double>(activations[(n * K + k) * pixels + i]);
            }
            const float value = static_cast<float>(sum);
            maps[n * pixels + i] = relu && value <= 0.0F ? 0.0F : value;
        }
    }
}

namespace {

struct Sample {
    std::size_t lower;
    std::size_t upper;
    float t;
};

Sample sample(std::size_t i, std::size_t length, Affine affine) {
    const double coordinate = (static_cast<double>(i) + 0.5) * affine.scale + affine.offset - 0.5;
    const double clamped = std::clamp(coordinate, 0.0, static_cast<double>(length - 1));
    const double lower = std::floor(clamped);
    const float t = static_cast<float>(clamped - lower);
    const auto index = static_cast<std::size_t>(lower);
    return {index, t == 0.0F ? index : index + 1, t};
}

float interpolate(float lower, float upper, float t) {
    return lower + t * (upper - lower);
}

}  // namespace

void resize_bilinear(const float* maps, float* out, std::size_t N, std::size_t h, std::size_t w, std::size_t H,
                     std::size_t W, Affine y, Affine x) {
    for (std::size_t n = 0; n < N; ++n) {
        const float* map = maps + n * h * w;
        for (std::size_t row = 0; row < H; ++row) {
            for (std::size_t column = 0; column < W; ++column) {
                const Sample v = sample(row, h, y);
                const Sample u = sample(column, w, x);
                const float top = interpolate(map[v.lower * w + u.lower], map[v.lower * w + u.upper], u.t);
                const float bottom = interpolate(map[v.upper * w + u.lower], map[v.upper * w + u.upper], u.t);
                out[(n * H + row) * W + column] = interpolate(top, bottom, v.t);
            }
        }
    }
}

void min_max(const float* maps, float* out, std::size_t N, std::size_t pixels, float epsilon) {
    for (std::size_t n = 0; n < N; ++n) {
        const float* map = maps + n * pixels;
        float lowest = map[0];
        float highest = map[0];
        bool finite = true;
        for (std::size_t i = 0; i < pixels; ++i) {
            lowest = std::min(lowest, map[i]);
            highest = std::max(highest, map[i]);
            finite = finite && std::isfinite(map[i]);
        }
        const float range = highest - lowest;
        const float scale = 1.0F / (epsilon + range);
        for (std::size_t i = 0; i < pixels; ++i) {
            float& value = out[n * pixels + i];
            if (!finite || !std::isfinite(range)) {
                value = std::numeric_limits<float>::quiet_NaN();
            } else if (range == 0.0F || std::isinf(scale)) {
                value = 0.0F;
            } else {
                value = std::abs((map[i] - lowest) * scale);
            }
        }
    }
}

void saliency_maps(const float* raws, float* out, std::size_t N, std::size_t h, std::size_t w, std::size_t H,
                   std::size_t W, Affine y, Affine x, float epsilon) {
    std::vector<float> maps(raws, raws + N * h * w);
    for (float& value : maps) value = value <= 0.0F ? 0.0F : value;
    reference::min_max(maps.data(), maps.data(), N, h * w, epsilon);
    reference::resize_bilinear(maps.data(), out, N, h, w, H, W, y, x);
    reference::min_max(out, out, N, H * W, epsilon);
}

void overlay(const std::uint8_t* picture, const float* values, const std::uint8_t* colormap, float opacity,
             std::uint8_t* out, std::size_t pixels) {
    for (std::size_t i = 0; i < pixels; ++i) {
        for (std::size_t channel = 0; channel < 3; ++channel) {
            const std::uint8_t original = picture[3 * i + channel];
            if (std::isnan(values[i])) {
                out[3 * i + channel] = original;
                continue;
            }
            const auto index = static_cast<std::size_t>(std::clamp(values[i], 0.0F, 1.0F) * 255.0F + 0.5F);
            const float colour = colormap[3 * index + channel];
            const float blend = (1.0F - opacity) * static_cast<float>(original) + opacity * colour;
            out[3 * i + channel] = static_cast<std::uint8_t>(blend + 0.5F);
        }
    }
}

}  // namespace onnxcam::reference
