#pragma once

/// The kernels that turn activations and weights into a heat map, and a heat map into a picture.
///
/// Letters      N samples, K channels, (h, w) of the target layer, (H, W) of the picture.
/// Layout       Every array is dense and C-contiguous: activations (N, K, h, w), maps (N, h, w), pictures
///              (H, W, 3) with interleaved channels. Pointers are aligned as their type asks, no further.
/// Aliasing     An output may not overlap an input, except in `min_max`, which may work in place.
/// Sizes        N may be 0 and then nothing is read or written. All other sizes are at least 1; h, w, H and W
///              are at most 2^31 - 1, and the caller has made sure that no product of sizes overflows. The
///              kernels check nothing: the Python bindings do.
/// Arithmetic   IEEE 754, round to nearest, no reassociation, no fused multiply-add that would round
///              otherwise: what a comment below states is what every build computes.
/// Determinism  The result is bit-identical whatever the number of threads, the compiler's optimisation level
///              and the instruction set (SSE2, AVX2, AVX-512, NEON), and equal to `src/reference.cpp`. The one
///              exception: which NaN (sign and payload) stands for a NaN is not promised.
/// NaN          Never hidden: each kernel says where a NaN comes out again.
/// Threads      `threads` is the most that are used, the calling one included; 0 means the machine's. Work too
/// small
///              to pay for a second thread stays in the calling one. Kernels have no state; calls may overlap in
///              time. When the system refuses a thread, the others do its part.
/// Exceptions   Only std::bad_alloc, before any output is written.

#include <cstddef>
#include <cstdint>

namespace onnxcam {

/// How alpha broadcasts against activations (N, K, h, w).
struct AlphaLayout {
    bool per_sample;  ///< leading size N; otherwise 1, the same alpha for every sample
    bool per_pixel;   ///< trailing sizes (h, w); otherwise (1, 1)
};

/// maps (N, h, w) = sum over k of alpha * activations, then max(., 0) if `relu`.
///
/// Products and sums are float64, k ascending, starting from 0; the sum is rounded to float32 once, at the end.
/// A product of two float32 is exact in float64, so the error is below one float32 rounding unless the
/// terms cancel by a factor of 10^7 or more. `pixels` is h * w.
/// NaN: a pixel with a NaN among its terms is NaN, with and without `relu`.
void weighted_sum(const float* activations, const float* alpha, AlphaLayout layout, float* maps, std::size_t N,
                  std::size_t K, std::size_t pixels, bool relu, int threads = 0);

/// The source coordinate of output pixel i along one axis is (i + 0.5) * scale + offset - 0.5, in source pixels
/// with pixel centres at whole numbers, computed in float64. Both are finite and scale > 0.
struct Affine {
    double scale;
    double offset;
};

/// out (N, H, W) = maps (N, h, w) sampled bilinearly at `y` and `x`, clamped to the edge, no antialias.
///
/// scale = h / H, offset = 0 is half-pixel resizing: OpenCV INTER_LINEAR (but for its exact 2x shrink),
/// torch align_corners=False, ONNX Resize linear half_pixel. Along each axis, with the clamped coordinate c,
/// i = floor(c) and t = float32(c - i): v[i] + t * (v[i + 1] - v[i]) in float32, first along x, then along y.
/// A constant stays that constant exactly. Differences of neighbours must stay below the float32 maximum.
/// NaN: comes out at every pixel whose two-by-two neighbourhood, without neighbours of weight 0, holds it;
/// so does an infinity, as infinity or NaN.
void resize_bilinear(const float* maps, float* out, std::size_t N, std::size_t h, std::size_t w, std::size_t H,
                     std::size_t W, Affine y, Affine x, int threads = 0);

/// out (N, pixels): per map (m - min m) * (1 / (epsilon + (max m - min m))), in float32.
///
/// epsilon >= 0 and finite. A constant map becomes zeros, even with epsilon 0, and so does one whose range is so
/// small that the factor would be infinite. The result is in [0, 1] and has no negative zero. NaN: a map with a NaN
/// or an infinity, or whose range overflows float32, becomes NaN throughout. `out` may be `maps`.
void min_max(const float* maps, float* out, std::size_t N, std::size_t pixels, float epsilon);

/// out (N, H, W) = saliency maps of raw maps (N, h, w): max(., 0), `min_max`, `resize_bilinear`, `min_max`.
///
/// The four steps one after the other, bit for bit, `epsilon` in both of `min_max`; `out` is written once.
/// NaN: a raw map with a NaN or a positive infinity becomes NaN throughout.
void saliency_maps(const float* raws, float* out, std::size_t N, std::size_t h, std::size_t w, std::size_t H,
                   std::size_t W, Affine y, Affine x, float epsilon, int threads = 0);

/// out (pixels, 3) = (1 - opacity) * picture + opacity * colormap[index], rounded to nearest, halves upwards.
///
/// index = floor(clamp(value, 0, 1) * 255 + 0.5), out = floor((1 - opacity) * picture + opacity * colour + 0.5), in
/// float32. colormap is (256, 3), opacity in [0, 1]: 0 returns the picture, 1 the colours, both exactly.
/// NaN: the pixel keeps the picture's colour, whatever the opacity.
void overlay(const std::uint8_t* picture, const float* values, const std::uint8_t* colormap, float opacity,
             std::uint8_t* out, std::size_t pixels);

}  // namespace onnxcam
