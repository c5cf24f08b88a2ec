#include <algorithm>

#include "onnxcam/onnxcam.h"
#include "onnxcam/postprocess.hpp"

using onnxcam::Status;

static_assert(ONNXCAM_NULL_POINTER == static_cast<int>(Status::null_pointer) &&
              ONNXCAM_BAD_SIZE == static_cast<int>(Status::bad_size) &&
              ONNXCAM_BAD_ALPHA == static_cast<int>(Status::bad_alpha) &&
              ONNXCAM_BAD_NUMBER == static_cast<int>(Status::bad_number) &&
              ONNXCAM_UNKNOWN_COLORMAP == static_cast<int>(Status::unknown_colormap) &&
              ONNXCAM_OUT_OF_MEMORY == static_cast<int>(Status::out_of_memory) &&
              ONNXCAM_INTERNAL == static_cast<int>(Status::internal));

namespace {

/// Calls paint(colors) with the table that a C caller holds.
template <class Paint>
int with_colors(const std::uint8_t* table, const Paint& paint) {
    if (table == nullptr) return ONNXCAM_NULL_POINTER;
    onnxcam::Colormap colors;
    std::copy_n(table, colors.size(), colors.begin());
    return static_cast<int>(paint(colors));
}

}  // namespace

const char* onnxcam_describe(int status) {
    return onnxcam::describe(static_cast<Status>(status));
}

const char* onnxcam_version(void) {
    return ONNXCAM_VERSION;
}

int onnxcam_raw_maps(const float* activations, size_t N, size_t K, size_t h, size_t w, const float* alpha,
                     size_t alpha_N, size_t alpha_h, size_t alpha_w, float* raws, int threads) {
    return static_cast<int>(
        onnxcam::raw_maps({activations, N, K, h, w}, {alpha, alpha_N, alpha_h, alpha_w}, raws, threads));
}

int onnxcam_heat_maps_of_raw(const float* raws, size_t N, size_t h, size_t w, float* maps, size_t H, size_t W,
                             int threads) {
    return static_cast<int>(onnxcam::heat_maps(raws, N, h, w, maps, H, W, threads));
}

int onnxcam_heat_maps(const float* activations, size_t N, size_t K, size_t h, size_t w, const float* alpha,
                      size_t alpha_N, size_t alpha_h, size_t alpha_w, float* maps, size_t H, size_t W,
                      int threads) {
    return static_cast<int>(
        onnxcam::heat_maps({activations, N, K, h, w}, {alpha, alpha_N, alpha_h, alpha_w}, maps, H, W, threads));
}

int onnxcam_colormap(const char* name, uint8_t* colors) {
    if (colors == nullptr) return ONNXCAM_NULL_POINTER;
    onnxcam::Colormap table;
    const Status status = onnxcam::colormap(name, table);
    if (status == Status::ok) std::copy(table.begin(), table.end(), colors);
    return static_cast<int>(status);
}

int onnxcam_colored(const float* values, size_t pixels, const uint8_t* colors, float opacity, uint8_t* rgba) {
    return with_colors(colors, [&](const onnxcam::Colormap& table) {
        return onnxcam::colored(values, pixels, table, opacity, rgba);
    });
}

int onnxcam_overlay(const uint8_t* picture, const float* values, size_t pixels, const uint8_t* colors,
                    float opacity, uint8_t* out) {
    return with_colors(colors, [&](const onnxcam::Colormap& table) {
        return onnxcam::overlay(picture, values, pixels, table, opacity, out);
    });
}
