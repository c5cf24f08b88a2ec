#pragma once

/// From the outputs of an explained model to a heat map and a picture, in any program: the kernels with their
/// arguments checked. What Python's `Explainer` computes on the host, bit for bit.
///
///     std::vector<float> map(H * W);
///     std::vector<std::uint8_t> picture(4 * H * W);
///     onnxcam::Colormap jet;
///     auto status = onnxcam::heat_maps({a, 1, K, h, w}, {alpha, 1, 1, 1}, map.data(), H, W);
///     if (status == onnxcam::Status::ok) status = onnxcam::colormap("jet", jet);
///     if (status == onnxcam::Status::ok) status = onnxcam::colored(map.data(), H * W, jet, 0.5F, picture.data());
///     if (status != onnxcam::Status::ok) std::puts(onnxcam::describe(status));
///
/// Letters, layout, threads, determinism and NaN as in kernels.hpp. Nothing throws; where the status is not `ok`,
/// nothing was written. Pointers may be null only where nothing is read or written (N = 0). Arrays are trusted to
/// be as long as their sizes say.

#include <array>
#include <cstddef>
#include <cstdint>

#include "onnxcam/kernels.hpp"

namespace onnxcam {

enum class Status : int {
    ok = 0,
    null_pointer = 1,      ///< an array is missing
    bad_size = 2,          ///< a size is 0 or beyond 2^31 - 1, or a product of sizes does not fit in memory
    bad_alpha = 3,         ///< alpha does not broadcast as (N or 1, K, 1, 1) or (N or 1, K, h, w)
    bad_number = 4,        ///< an opacity outside [0, 1], a negative number of threads, a NaN
    unknown_colormap = 5,  ///< not one of jet, viridis, hot, gray
    out_of_memory = 6,
    internal = 7,  ///< the system refused something else
};

/// What went wrong, as a sentence in English. Never null.
const char* describe(Status status) noexcept;

/// The activations (N, K, h, w) of the explained layer.
struct Activations {
    const float* data;
    std::size_t N, K, h, w;
};

/// The weights (N, K, h, w) of these activations: N may be 1 for all samples, h and w 1 for the whole grid.
struct Alpha {
    const float* data;
    std::size_t N, h, w;
};

/// raws (N, h, w): the sum over channels of alpha times activations, signed; see `weighted_sum`.
Status raw_maps(const Activations& activations, const Alpha& alpha, float* raws, int threads = 0) noexcept;

/// maps (N, H, W) in [0, 1] of raw maps (N, h, w): see `onnxcam::saliency_maps`, epsilon 1e-7, half-pixel resize. A
/// raw map without positive values gives zeros.
Status heat_maps(const float* raws, std::size_t N, std::size_t h, std::size_t w, float* maps, std::size_t H,
                 std::size_t W, int threads = 0) noexcept;

/// Both at once: maps (N, H, W) in [0, 1].
Status heat_maps(const Activations& activations, const Alpha& alpha, float* maps, std::size_t H, std::size_t W,
                 int threads = 0) noexcept;

/// 256 colours (256, 3), RGB, from value 0 to value 1.
using Colormap = std::array<std::uint8_t, 3 * 256>;

/// The colours called `jet`, `viridis`, `hot` or `gray`.
Status colormap(const char* name, Colormap& colors) noexcept;

/// rgba (pixels, 4): the colours of values in [0, 1] as a layer to draw over a picture, straight alpha.
///
/// The colour is `overlay`'s, alpha is floor(opacity * 255 + 0.5), and 0 where the value is NaN.
Status colored(const float* values, std::size_t pixels, const Colormap& colors, float opacity,
               std::uint8_t* rgba) noexcept;

/// out (pixels, 3): the RGB picture with the colours blended over it; see `onnxcam::overlay`.
Status overlay(const std::uint8_t* picture, const float* values, std::size_t pixels, const Colormap& colors,
               float opacity, std::uint8_t* out) noexcept;

}  // namespace onnxcam
