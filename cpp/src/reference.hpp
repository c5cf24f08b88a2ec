#pragma once

/// The kernels of onnxcam/kernels.hpp once more, as plainly as their contract can be written down: the oracle
/// that the fast ones must equal bit for bit. One thread, no tables, no tiles. Do not optimise.

#include <cstddef>
#include <cstdint>

#include "onnxcam/kernels.hpp"

namespace onnxcam::reference {

void weighted_sum(const float* activations, const float* alpha, AlphaLayout layout, float* maps, std::size_t N,
                  std::size_t K, std::size_t pixels, bool relu);

void resize_bilinear(const float* maps, float* out, std::size_t N, std::size_t h, std::size_t w, std::size_t H,
                     std::size_t W, Affine y, Affine x);

void min_max(const float* maps, float* out, std::size_t N, std::size_t pixels, float epsilon);

void saliency_maps(const float* raws, float* out, std::size_t N, std::size_t h, std::size_t w, std::size_t H,
                   std::size_t W, Affine y, Affine x, float epsilon);

void overlay(const std::uint8_t* picture, const float* values, const std::uint8_t* colormap, float opacity,
             std::uint8_t* out, std::size_t pixels);

}  // namespace onnxcam::reference
