/// Every kernel against its plain reference, bit for bit, at odd sizes and all thread counts. Arrays are exactly as
/// long as the contract says, so that AddressSanitizer sees a step outside.

#include "onnxcam/kernels.hpp"

#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "reference.hpp"

namespace {

std::mt19937 generator(20240607);
int checks = 0;
int failures = 0;

std::vector<float> random_floats(std::size_t count, float lowest, float highest) {
    std::uniform_real_distribution<float> uniform(lowest, highest);
    std::vector<float> values(count);
    for (float& value : values) value = uniform(generator);
    return values;
}

std::vector<std::uint8_t> random_bytes(std::size_t count) {
    std::uniform_int_distribution<int> uniform(0, 255);
    std::vector<std::uint8_t> values(count);
    for (std::uint8_t& value : values) value = static_cast<std::uint8_t>(uniform(generator));
    return values;
}

/// The same bits, except that one NaN is as good as another.
bool same(float a, float b) {
    return (a != a && b != b) || std::memcmp(&a, &b, sizeof a) == 0;
}
bool same(std::uint8_t a, std::uint8_t b) {
    return a == b;
}

template <class T>
void expect_same(const std::vector<T>& actual, const std::vector<T>& expected, const std::string& what) {
    ++checks;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        if (!same(actual[i], expected[i])) {
            ++failures;
            std::printf("%s: element %zu is %.9g, reference %.9g\n", what.c_str(), i,
                        static_cast<double>(actual[i]), static_cast<double>(expected[i]));
            return;
        }
    }
}

std::string text(std::initializer_list<std::size_t> sizes) {
    std::string joined;
    for (const std::size_t size : sizes) joined += " " + std::to_string(size);
    return joined;
}

constexpr int thread_counts[] = {0, 1, 2, 3, 8};
constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

void test_threaded_weighted_sum() {
    const std::size_t N = 3, K = 512, pixels = 2049;
    const auto activations = random_floats(N * K * pixels, -1.0F, 1.0F);
    const auto alpha = random_floats(N * K, -1.0F, 1.0F);
    std::vector<float> expected(N * pixels), actual(N * pixels);
    onnxcam::reference::weighted_sum(activations.data(), alpha.data(), {true, false}, expected.data(), N, K, pixels,
                                     false);
    for (const int threads : thread_counts) {
        onnxcam::weighted_sum(activations.data(), alpha.data(), {true, false}, actual.data(), N, K, pixels, false,
                              threads);
        expect_same(actual, expected, "weighted_sum on " + std::to_string(threads) + " threads");
    }
}

void test_weighted_sum() {
    for (const std::size_t N : {0, 1, 3}) {
        for (const std::size_t K : {1, 2, 3, 4, 5, 9, 67}) {
            for (const std::size_t pixels : {1, 7, 49, 511, 512, 513, 1031}) {
                for (int layout = 0; layout < 4; ++layout) {
                    const onnxcam::AlphaLayout broadcast{(layout & 1) != 0, (layout & 2) != 0};
                    auto activations = random_floats(N * K * pixels, -1.0F, 1.0F);
                    auto alpha = random_floats(
                        (broadcast.per_sample ? N : 1) * K * (broadcast.per_pixel ? pixels : 1), -1.0F, 1.0F);
                    if (K == 5 && N > 0) activations[3 * pixels] = nan;
                    if (K == 9 && N > 0) activations[2 * pixels] = infinity;
                    for (const bool relu : {false, true}) {
                        std::vector<float> expected(N * pixels);
                        onnxcam::reference::weighted_sum(activations.data(), alpha.data(), broadcast,
                                                         expected.data(), N, K, pixels, relu);
                        for (const int threads : thread_counts) {
                            std::vector<float> actual(N * pixels);
                            onnxcam::weighted_sum(activations.data(), alpha.data(), broadcast, actual.data(), N, K,
                                                  pixels, relu, threads);
                            expect_same(actual, expected, "weighted_sum N K pixels" + text({N, K, pixels}));
                        }
                    }
                }
            }
        }
    }
}

struct Case {
    std::size_t N, h, w, H, W;
};

void test_resize_bilinear() {
    const Case cases[] = {{0, 3, 3, 5, 5},     {1, 1, 1, 1, 1},      {1, 1, 1, 9, 17},    {2, 7, 7, 224, 224},
                          {3, 7, 5, 13, 3},    {1, 13, 17, 333, 97}, {2, 40, 31, 20, 15}, {1, 2, 3, 64, 65},
                          {1, 5, 1, 1, 5},     {1, 9, 9, 9, 9},      {1, 65, 129, 7, 2},  {4, 3, 2, 129, 31},
                          {3, 7, 6, 900, 1700}};
    for (const Case& c : cases) {
        auto maps = random_floats(c.N * c.h * c.w, -3.0F, 5.0F);
        if (c.h == 9) maps[40] = nan;
        if (c.h == 13) maps[40] = infinity;
        const onnxcam::Affine natural_y{static_cast<double>(c.h) / static_cast<double>(c.H), 0.0};
        const onnxcam::Affine natural_x{static_cast<double>(c.w) / static_cast<double>(c.W), 0.0};
        const onnxcam::Affine pairs[][2] = {{natural_y, natural_x},
                                            {{0.137, -0.71}, {0.93, 1.3}},
                                            {{1e-300, 1e300}, {1e300, -1e300}},
                                            {{3.0, -100.0}, {1e-9, 1.25}}};
        for (const auto& [y, x] : pairs) {
            std::vector<float> expected(c.N * c.H * c.W);
            onnxcam::reference::resize_bilinear(maps.data(), expected.data(), c.N, c.h, c.w, c.H, c.W, y, x);
            for (const int threads : thread_counts) {
                std::vector<float> actual(expected.size());
                onnxcam::resize_bilinear(maps.data(), actual.data(), c.N, c.h, c.w, c.H, c.W, y, x, threads);
                expect_same(actual, expected, "resize_bilinear N h w H W" + text({c.N, c.h, c.w, c.H, c.W}));
            }
        }
    }
}

void test_saliency_maps() {
    const Case cases[] = {{0, 3, 3, 5, 5},     {1, 1, 1, 1, 1},      {1, 1, 1, 9, 17},    {2, 7, 7, 224, 224},
                          {3, 7, 5, 13, 3},    {1, 13, 17, 333, 97}, {2, 40, 31, 20, 15}, {1, 2, 3, 64, 65},
                          {1, 5, 1, 1, 5},     {1, 9, 9, 9, 9},      {1, 65, 129, 7, 2},  {4, 3, 2, 129, 31},
                          {3, 7, 6, 900, 1700}};
    for (const Case& c : cases) {
        const std::size_t cells = c.h * c.w;
        auto signed_maps = random_floats(c.N * cells, -3.0F, 5.0F);
        auto negative = random_floats(c.N * cells, -3.0F, -1.0F);
        auto flat = std::vector<float>(c.N * cells, 2.5F);
        auto broken = signed_maps;
        if (c.N > 0) broken[cells / 2] = nan;
        if (c.N > 1) broken[cells] = infinity;
        const onnxcam::Affine natural_y{static_cast<double>(c.h) / static_cast<double>(c.H), 0.0};
        const onnxcam::Affine natural_x{static_cast<double>(c.w) / static_cast<double>(c.W), 0.0};
        const onnxcam::Affine pairs[][2] = {
            {natural_y, natural_x}, {{0.137, -0.71}, {0.93, 1.3}}, {{3.0, -100.0}, {1e-9, 1.25}}};
        for (const auto& maps : {signed_maps, negative, flat, broken}) {
            for (const auto& [y, x] : pairs) {
                for (const float epsilon : {0.0F, 1e-7F}) {
                    std::vector<float> expected(c.N * c.H * c.W);
                    onnxcam::reference::saliency_maps(maps.data(), expected.data(), c.N, c.h, c.w, c.H, c.W, y, x,
                                                      epsilon);
                    for (const int threads : thread_counts) {
                        std::vector<float> actual(expected.size());
                        onnxcam::saliency_maps(maps.data(), actual.data(), c.N, c.h, c.w, c.H, c.W, y, x, epsilon,
                                               threads);
                        expect_same(actual, expected, "saliency_maps N h w H W" + text({c.N, c.h, c.w, c.H, c.W}));
                    }
                }
            }
        }
    }
}

void test_min_max() {
    for (const std::size_t N : {0, 1, 3}) {
        for (const std::size_t pixels : {1, 2, 31, 32, 33, 49, 1023}) {
            auto ordinary = random_floats(N * pixels, -2.0F, 7.0F);
            auto zeros = ordinary;
            for (std::size_t i = 0; i < zeros.size(); ++i) zeros[i] = i % 3 == 0 ? -0.0F : i % 3 == 1 ? 0.0F : 1.0F;
            auto with_nan = ordinary;
            auto with_infinity = ordinary;
            if (N > 0) with_nan.back() = nan;
            if (N > 0) with_infinity.front() = -infinity;
            for (const auto& maps : {ordinary, zeros, with_nan, with_infinity}) {
                for (const float epsilon : {0.0F, 1e-7F, 1.0F}) {
                    std::vector<float> expected(maps.size());
                    onnxcam::reference::min_max(maps.data(), expected.data(), N, pixels, epsilon);
                    std::vector<float> actual(maps.size());
                    onnxcam::min_max(maps.data(), actual.data(), N, pixels, epsilon);
                    expect_same(actual, expected, "min_max N pixels" + text({N, pixels}));
                    actual = maps;
                    onnxcam::min_max(actual.data(), actual.data(), N, pixels, epsilon);
                    expect_same(actual, expected, "min_max in place N pixels" + text({N, pixels}));
                }
            }
        }
    }
}

void test_overlay() {
    const auto colormap = random_bytes(256 * 3);
    for (const std::size_t pixels : {1, 2, 15, 255, 256, 257, 1023}) {
        const auto picture = random_bytes(3 * pixels);
        auto values = random_floats(pixels, -0.25F, 1.25F);
        values[pixels / 2] = nan;
        values[pixels - 1] = infinity;
        values[0] = -infinity;
        for (const float opacity : {0.0F, 0.25F, 0.4F, 0.5F, 1.0F}) {
            std::vector<std::uint8_t> expected(3 * pixels), actual(3 * pixels);
            onnxcam::reference::overlay(picture.data(), values.data(), colormap.data(), opacity, expected.data(),
                                        pixels);
            onnxcam::overlay(picture.data(), values.data(), colormap.data(), opacity, actual.data(), pixels);
            expect_same(actual, expected, "overlay pixels" + text({pixels}));
        }
    }
}

}  // namespace

int main() {
    test_weighted_sum();
    test_threaded_weighted_sum();
    test_resize_bilinear();
    test_saliency_maps();
    test_min_max();
    test_overlay();
    std::printf("%d comparisons, %d failed\n", checks, failures);
    return failures == 0 ? 0 : 1;
}
