/// The checked functions against the plain kernels, bit for bit, and what happens when memory runs out.

#include "onnxcam/postprocess.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <random>
#include <vector>

#include "reference.hpp"

namespace {

bool exhausted = false;
int failures = 0;

void expect(bool holds, const char* claim) {
    if (holds) return;
    std::printf("not so: %s\n", claim);
    ++failures;
}

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

}  // namespace

void* operator new(std::size_t size) {
    void* const found = exhausted ? nullptr : std::malloc(size);
    if (found == nullptr) throw std::bad_alloc();
    return found;
}
void operator delete(void* pointer) noexcept {
    std::free(pointer);
}
void operator delete(void* pointer, std::size_t) noexcept {
    std::free(pointer);
}

int main() {
    const std::size_t N = 3, K = 17, h = 5, w = 7, H = 61, W = 43;
    std::mt19937 generator(7);
    std::normal_distribution<float> normal;
    std::vector<float> a(N * K * h * w), alpha(N * K * h * w);
    for (float& v : a) v = normal(generator);
    for (float& v : alpha) v = normal(generator);
    const onnxcam::Affine y{5.0 / 61, 0}, x{7.0 / 43, 0};

    for (const bool per_sample : {false, true}) {
        for (const bool per_pixel : {false, true}) {
            const onnxcam::Alpha given{alpha.data(), per_sample ? N : 1, per_pixel ? h : 1, per_pixel ? w : 1};
            std::vector<float> raws(N * h * w), raws_expected(raws), maps(N * H * W), expected(maps);
            onnxcam::reference::weighted_sum(a.data(), alpha.data(), {per_sample, per_pixel}, raws_expected.data(),
                                             N, K, h * w, false);
            onnxcam::reference::saliency_maps(raws_expected.data(), expected.data(), N, h, w, H, W, y, x, 1e-7F);
            expect(onnxcam::raw_maps({a.data(), N, K, h, w}, given, raws.data()) == onnxcam::Status::ok,
                   "sum runs");
            expect(same(raws, raws_expected), "the sum is the plain sum");
            expect(onnxcam::heat_maps({a.data(), N, K, h, w}, given, maps.data(), H, W) == onnxcam::Status::ok,
                   "maps run");
            expect(same(maps, expected), "the maps are the plain maps");
        }
    }

    std::vector<float> maps(N * H * W, 7.0F);
    const auto untouched = maps;
    exhausted = true;
    const auto status = onnxcam::heat_maps({a.data(), N, K, h, w}, {alpha.data(), 1, 1, 1}, maps.data(), H, W);
    exhausted = false;
    expect(status == onnxcam::Status::out_of_memory, "no memory is said");
    expect(same(maps, untouched), "without memory nothing is written");

    std::vector<std::uint8_t> picture(3 * H * W), out(3 * H * W), drawn(3 * H * W);
    for (auto& byte : picture) byte = static_cast<std::uint8_t>(generator() % 256);
    onnxcam::Colormap viridis;
    expect(onnxcam::colormap("viridis", viridis) == onnxcam::Status::ok, "viridis is known");
    expect(viridis[0] == 0x44 && viridis[1] == 0x01 && viridis[2] == 0x54 && viridis[767] == 0x25, "its ends");
    expect(onnxcam::overlay(picture.data(), a.data(), h * w, viridis, 0.25F, out.data()) == onnxcam::Status::ok,
           "overlay runs");
    onnxcam::reference::overlay(picture.data(), a.data(), viridis.data(), 0.25F, drawn.data(), h * w);
    expect(same(out, drawn), "the overlay is the plain one");

    std::printf("%d failures\n", failures);
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
