#include "onnxcam/postprocess.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <new>
#include <vector>

namespace onnxcam {
namespace {

constexpr float epsilon = 1e-7F;

/// Whether an array of N times these sizes can exist.
Status sized(std::size_t N, std::initializer_list<std::size_t> sizes) {
    constexpr std::size_t largest = std::numeric_limits<std::int32_t>::max();
    std::size_t room = std::numeric_limits<std::ptrdiff_t>::max() / sizeof(double) / std::max<std::size_t>(N, 1);
    for (const std::size_t size : sizes) {
        if (size == 0 || size > largest || size > room) return Status::bad_size;
        room /= size;
    }
    return room > 0 ? Status::ok : Status::bad_size;
}

Status first_problem(std::initializer_list<Status> found) {
    const auto problem = std::find_if(found.begin(), found.end(), [](Status s) { return s != Status::ok; });
    return problem == found.end() ? Status::ok : *problem;
}

Status present(std::size_t count, std::initializer_list<const void*> pointers) {
    const bool missing = std::find(pointers.begin(), pointers.end(), nullptr) != pointers.end();
    return count > 0 && missing ? Status::null_pointer : Status::ok;
}

Status fits(const Activations& a, const Alpha& alpha) {
    const bool whole = alpha.h == 1 && alpha.w == 1;
    const bool cells = alpha.h == a.h && alpha.w == a.w;
    return (alpha.N == a.N || alpha.N == 1) && (whole || cells) ? Status::ok : Status::bad_alpha;
}

Status usable(int threads) {
    return threads >= 0 ? Status::ok : Status::bad_number;
}

Status share(float opacity) {
    return opacity >= 0.0F && opacity <= 1.0F ? Status::ok : Status::bad_number;
}

Status checked(const Activations& a, const Alpha& alpha, const float* out, int threads) {
    return first_problem(
        {sized(a.N, {a.K, a.h, a.w}), fits(a, alpha), usable(threads), present(a.N, {a.data, alpha.data, out})});
}

void sum(const Activations& a, const Alpha& alpha, float* raws, int threads) {
    const AlphaLayout layout{alpha.N == a.N, alpha.h != 1 || alpha.w != 1};
    weighted_sum(a.data, alpha.data, layout, raws, a.N, a.K, a.h * a.w, false, threads);
}

void enlarge(const float* raws, std::size_t N, std::size_t h, std::size_t w, float* maps, std::size_t H,
             std::size_t W, int threads) {
    const auto half_pixel = [](std::size_t cells, std::size_t pixels) {
        return Affine{static_cast<double>(cells) / static_cast<double>(pixels), 0.0};
    };
    saliency_maps(raws, maps, N, h, w, H, W, half_pixel(h, H), half_pixel(w, W), epsilon, threads);
}

/// Runs what the checks allowed; nothing thrown leaves it.
template <class Work>
Status guarded(Status allowed, const Work& work) noexcept {
    if (allowed != Status::ok) return allowed;
    try {
        work();
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    } catch (...) {
        return Status::internal;
    }
    return Status::ok;
}

std::array<double, 3> jet(double t) {
    return {1.5 - std::abs(4 * t - 3), 1.5 - std::abs(4 * t - 2), 1.5 - std::abs(4 * t - 1)};
}

std::array<double, 3> hot(double t) {
    return {t / 0.375, (t - 0.375) / 0.375, (t - 0.75) / 0.25};
}

std::array<double, 3> gray(double t) {
    return {t, t, t};
}

/// matplotlib's viridis, linear between 9 of its colours.
std::array<double, 3> viridis(double t) {
    constexpr int stops[9][3] = {{0x44, 0x01, 0x54}, {0x47, 0x2d, 0x7b}, {0x3b, 0x52, 0x8b},
                                 {0x2c, 0x72, 0x8e}, {0x21, 0x91, 0x8c}, {0x28, 0xae, 0x80},
                                 {0x5e, 0xc9, 0x62}, {0xad, 0xdc, 0x30}, {0xfd, 0xe7, 0x25}};
    const int i = std::min(static_cast<int>(t * 8), 7);
    std::array<double, 3> color{};
    for (std::size_t channel = 0; channel < 3; ++channel) {
        color[channel] = (stops[i][channel] + (t * 8 - i) * (stops[i + 1][channel] - stops[i][channel])) / 255;
    }
    return color;
}

constexpr struct {
    const char* name;
    std::array<double, 3> (*color)(double);
} colormaps[] = {{"jet", jet}, {"viridis", viridis}, {"hot", hot}, {"gray", gray}};

}  // namespace

const char* describe(Status status) noexcept {
    switch (status) {
        case Status::ok:
            return "done";
        case Status::null_pointer:
            return "an array is missing: a pointer is null";
        case Status::bad_size:
            return "a size is 0 or beyond 2147483647, or the sizes together exceed memory";
        case Status::bad_alpha:
            return "alpha does not broadcast against the activations: give (N or 1, K, 1, 1) or "
                   "(N or 1, K, h, w)";
        case Status::bad_number:
            return "a number is out of range: opacity is 0 to 1, threads 0 or more";
        case Status::unknown_colormap:
            return "no such colormap: use jet, viridis, hot or gray";
        case Status::out_of_memory:
            return "out of memory";
        case Status::internal:
            return "the system refused a resource";
    }
    return "no such status";
}

Status raw_maps(const Activations& activations, const Alpha& alpha, float* raws, int threads) noexcept {
    return guarded(checked(activations, alpha, raws, threads), [&] { sum(activations, alpha, raws, threads); });
}

Status heat_maps(const float* raws, std::size_t N, std::size_t h, std::size_t w, float* maps, std::size_t H,
                 std::size_t W, int threads) noexcept {
    const Status allowed =
        first_problem({sized(N, {h, w}), sized(N, {H, W}), usable(threads), present(N, {raws, maps})});
    return guarded(allowed, [&] { enlarge(raws, N, h, w, maps, H, W, threads); });
}

Status heat_maps(const Activations& a, const Alpha& alpha, float* maps, std::size_t H, std::size_t W,
                 int threads) noexcept {
    return guarded(first_problem({checked(a, alpha, maps, threads), sized(a.N, {H, W})}), [&] {
        std::vector<float> raws(a.N * a.h * a.w);
        sum(a, alpha, raws.data(), threads);
        enlarge(raws.data(), a.N, a.h, a.w, maps, H, W, threads);
    });
}

Status colormap(const char* name, Colormap& colors) noexcept {
    if (name == nullptr) return Status::null_pointer;
    for (const auto& known : colormaps) {
        if (std::strcmp(known.name, name) != 0) continue;
        for (std::size_t i = 0; i < 256; ++i) {
            const auto color = known.color(static_cast<double>(i) / 255);
            for (std::size_t channel = 0; channel < 3; ++channel) {
                const double level = std::clamp(color[channel], 0.0, 1.0) * 255;
                colors[3 * i + channel] = static_cast<std::uint8_t>(std::nearbyint(level));
            }
        }
        return Status::ok;
    }
    return Status::unknown_colormap;
}

Status colored(const float* values, std::size_t pixels, const Colormap& colors, float opacity,
               std::uint8_t* rgba) noexcept {
    const Status allowed = first_problem({sized(pixels, {4}), share(opacity), present(pixels, {values, rgba})});
    return guarded(allowed, [&] {
        const auto alpha = static_cast<std::uint8_t>(opacity * 255.0F + 0.5F);
        for (std::size_t i = 0; i < pixels; ++i) {
            const float v = values[i];
            const float clamped = v > 0.0F ? (v < 1.0F ? v : 1.0F) : 0.0F;
            std::copy_n(colors.data() + 3 * static_cast<std::size_t>(clamped * 255.0F + 0.5F), 3, rgba + 4 * i);
            rgba[4 * i + 3] = v == v ? alpha : std::uint8_t{0};
        }
    });
}

Status overlay(const std::uint8_t* picture, const float* values, std::size_t pixels, const Colormap& colors,
               float opacity, std::uint8_t* out) noexcept {
    const Status allowed =
        first_problem({sized(pixels, {3}), share(opacity), present(pixels, {picture, values, out})});
    return guarded(allowed, [&] { overlay(picture, values, colors.data(), opacity, out, pixels); });
}

}  // namespace onnxcam
