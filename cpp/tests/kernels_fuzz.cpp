/// Kernels against their plain references on inputs made of arbitrary bytes: sizes, layouts, thread counts, any bit
/// pattern as float. Under libFuzzer (ONNXCAM_LIBFUZZER) it searches; else it draws as many inputs as it is told,
/// from a seed: `kernels_fuzz [COUNT [SEED]]`. Arrays are exactly as long as the contract says.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "onnxcam/kernels.hpp"
#include "reference.hpp"

namespace {

/// Numbers from bytes; zeros once they are used up.
class Bytes {
  public:
    Bytes(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {}

    std::uint8_t byte() {
        if (left_ == 0) return 0;
        --left_;
        return *data_++;
    }
    std::size_t up_to(std::size_t most) { return 1 + (byte() * std::size_t{256} + byte()) % most; }
    /// Any float at all, or, for most of them, one of ordinary size.
    float number() {
        const std::uint8_t kind = byte();
        if (kind < 16) {
            std::uint32_t bits = 0;
            for (int i = 0; i < 4; ++i) bits = bits << 8 | byte();
            float value;
            std::memcpy(&value, &bits, sizeof value);
            return value;
        }
        return (static_cast<float>(kind) - 128.0F) * std::ldexp(1.0F, byte() % 24 - 12);
    }
    std::vector<float> numbers(std::size_t count) {
        std::vector<float> values(count);
        const std::size_t given = std::min<std::size_t>(count, 64);
        for (std::size_t i = 0; i < given; ++i) values[i] = number();
        for (std::size_t i = given; i < count; ++i)
            values[i] = values[i % given] * (1.0F + static_cast<float>(i % 7));
        return values;
    }

  private:
    const std::uint8_t* data_;
    std::size_t left_;
};

void expect(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "%s differs from its reference\n", what);
    std::abort();
}

/// The same bits, except that one NaN is as good as another.
void expect_same(const std::vector<float>& actual, const std::vector<float>& expected, const char* what) {
    for (std::size_t i = 0; i < expected.size(); ++i) {
        const bool both = std::isnan(actual[i]) && std::isnan(expected[i]);
        expect(both || std::memcmp(&actual[i], &expected[i], sizeof(float)) == 0, what);
    }
}

onnxcam::Affine affine(Bytes& bytes, std::size_t source, std::size_t size) {
    if (bytes.byte() % 2 == 0) return {static_cast<double>(source) / static_cast<double>(size), 0.0};
    const double scale = std::fabs(static_cast<double>(bytes.number())),
                 offset = static_cast<double>(bytes.number());
    return {std::isfinite(scale) && scale > 0 ? scale : 1.0, std::isfinite(offset) ? offset : 0.0};
}

void weighted_sum(Bytes& bytes, int threads) {
    const std::size_t N = bytes.up_to(3), K = bytes.up_to(40), pixels = bytes.up_to(600);
    const onnxcam::AlphaLayout layout{bytes.byte() % 2 != 0, bytes.byte() % 2 != 0};
    const bool relu = bytes.byte() % 2 != 0;
    const auto alpha = bytes.numbers((layout.per_sample ? N : 1) * K * (layout.per_pixel ? pixels : 1));
    const auto activations = bytes.numbers(N * K * pixels);
    std::vector<float> expected(N * pixels), actual(N * pixels);
    onnxcam::reference::weighted_sum(activations.data(), alpha.data(), layout, expected.data(), N, K, pixels, relu);
    onnxcam::weighted_sum(activations.data(), alpha.data(), layout, actual.data(), N, K, pixels, relu, threads);
    expect_same(actual, expected, "weighted_sum");
}

void min_max(Bytes& bytes) {
    const std::size_t N = bytes.up_to(4), pixels = bytes.up_to(1200);
    const float epsilon = bytes.byte() % 2 == 0 ? 0.0F : 1e-7F;
    auto maps = bytes.numbers(N * pixels);
    std::vector<float> expected(maps.size()), actual(maps.size());
    onnxcam::reference::min_max(maps.data(), expected.data(), N, pixels, epsilon);
    onnxcam::min_max(maps.data(), actual.data(), N, pixels, epsilon);
    expect_same(actual, expected, "min_max");
    onnxcam::min_max(maps.data(), maps.data(), N, pixels, epsilon);
    expect_same(maps, expected, "min_max in place");
}

void resizing(Bytes& bytes, int threads) {
    const std::size_t N = bytes.up_to(3), h = bytes.up_to(40), w = bytes.up_to(40), H = bytes.up_to(150),
                      W = bytes.up_to(150);
    const onnxcam::Affine y = affine(bytes, h, H), x = affine(bytes, w, W);
    const float epsilon = bytes.byte() % 2 == 0 ? 0.0F : 1e-7F;
    auto maps = bytes.numbers(N * h * w);
    for (float& value : maps) {  // differences of neighbours must stay below the float32 maximum
        if (std::isfinite(value) && std::fabs(value) > 1e38F) value = std::copysign(1e38F, value);
    }
    std::vector<float> expected(N * H * W), actual(N * H * W);
    onnxcam::reference::resize_bilinear(maps.data(), expected.data(), N, h, w, H, W, y, x);
    onnxcam::resize_bilinear(maps.data(), actual.data(), N, h, w, H, W, y, x, threads);
    expect_same(actual, expected, "resize_bilinear");
    onnxcam::reference::saliency_maps(maps.data(), expected.data(), N, h, w, H, W, y, x, epsilon);
    onnxcam::saliency_maps(maps.data(), actual.data(), N, h, w, H, W, y, x, epsilon, threads);
    expect_same(actual, expected, "saliency_maps");
}

void overlay(Bytes& bytes) {
    const std::size_t pixels = bytes.up_to(3000);
    const float opacity = static_cast<float>(bytes.byte() * 256 + bytes.byte()) / 65535.0F;
    std::vector<std::uint8_t> picture(pixels * 3), colormap(256 * 3), expected(pixels * 3), actual(pixels * 3);
    for (std::size_t i = 0; i < colormap.size(); ++i)
        colormap[i] = static_cast<std::uint8_t>(i * 37 + bytes.byte());
    for (std::size_t i = 0; i < picture.size(); ++i) picture[i] = static_cast<std::uint8_t>(i * 11 + bytes.byte());
    auto values = bytes.numbers(pixels);
    if (bytes.byte() % 4 != 0) {  // most of them where colours differ
        for (float& value : values) value = std::fmod(std::fabs(value) * 0.7317F, 1.0F);
    }
    onnxcam::reference::overlay(picture.data(), values.data(), colormap.data(), opacity, expected.data(), pixels);
    onnxcam::overlay(picture.data(), values.data(), colormap.data(), opacity, actual.data(), pixels);
    expect(actual == expected, "overlay");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Bytes bytes(data, size);
    const std::uint8_t kernel = bytes.byte();
    const int threads = bytes.byte() % 5;
    switch (kernel % 4) {
        case 0:
            weighted_sum(bytes, threads);
            break;
        case 1:
            min_max(bytes);
            break;
        case 2:
            resizing(bytes, threads);
            break;
        case 3:
            overlay(bytes);
            break;
    }
    return 0;
}

#ifdef ONNXCAM_LIBFUZZER
extern "C" int LLVMFuzzerRunDriver(int*, char***, int (*)(const std::uint8_t*, std::size_t));

int main(int count, char** arguments) {
    return LLVMFuzzerRunDriver(&count, &arguments, LLVMFuzzerTestOneInput);
}
#else
int main(int count, char** arguments) {
    const long inputs = count > 1 ? std::atol(arguments[1]) : 2000;
    std::mt19937 generator(count > 2 ? static_cast<unsigned>(std::atol(arguments[2])) : 20261123U);
    std::uniform_int_distribution<int> byte(0, 255), length(0, 700);
    std::vector<std::uint8_t> data;
    for (long i = 0; i < inputs; ++i) {
        data.resize(static_cast<std::size_t>(length(generator)));
        for (std::uint8_t& value : data) value = static_cast<std::uint8_t>(byte(generator));
        LLVMFuzzerTestOneInput(data.data(), data.size());
    }
    std::printf("%ld inputs: every kernel equals its reference\n", inputs);
    return 0;
}
#endif
