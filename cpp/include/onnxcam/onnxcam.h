#ifndef ONNXCAM_ONNXCAM_H
#define ONNXCAM_ONNXCAM_H

/*
 * onnxcam for C, and for every language that calls C: heat maps from the outputs of an explained model.
 *
 * The functions of postprocess.hpp with plain arguments: no handles, no global state, no allocation that the caller
 * must free, nothing thrown. Calls may overlap in time. Every function returns ONNXCAM_OK or what was wrong, and
 * then has written nothing.
 *
 * N samples, K channels, (h, w) of the explained layer, (H, W) of the picture. Arrays are dense, row by row,
 * aligned as their type asks, and as long as their sizes say; an output overlaps no input. Sizes are at least 1, N
 * may be 0. threads: the most that are used, 0 means the machine's; the result is the same bits for any number. A
 * NaN among the activations makes the map of its sample NaN throughout.
 */

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && defined(ONNXCAM_SHARED)
#ifdef ONNXCAM_BUILDS
#define ONNXCAM_API __declspec(dllexport)
#else
#define ONNXCAM_API __declspec(dllimport)
#endif
#elif defined(__GNUC__)
#define ONNXCAM_API __attribute__((visibility("default")))
#else
#define ONNXCAM_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The numbers never change. */
enum {
    ONNXCAM_OK = 0,
    ONNXCAM_NULL_POINTER = 1,     /* an array is missing */
    ONNXCAM_BAD_SIZE = 2,         /* a size is 0 or beyond 2^31 - 1, or the sizes together exceed memory */
    ONNXCAM_BAD_ALPHA = 3,        /* alpha does not broadcast against the activations */
    ONNXCAM_BAD_NUMBER = 4,       /* an opacity outside [0, 1], a negative number of threads, a NaN */
    ONNXCAM_UNKNOWN_COLORMAP = 5, /* not one of jet, viridis, hot, gray */
    ONNXCAM_OUT_OF_MEMORY = 6,
    ONNXCAM_INTERNAL = 7 /* the system refused something else */
};

/* What a returned number means, in English; static text, never NULL. */
ONNXCAM_API const char* onnxcam_describe(int status);

/* The library's version, such as "0.1.0"; static text. */
ONNXCAM_API const char* onnxcam_version(void);

/* raws (N, h, w) = the sum over channels of alpha times activations (N, K, h, w), signed.
 * alpha (alpha_N, K, alpha_h, alpha_w): alpha_N is N or 1; alpha_h and alpha_w are h and w, or both 1. */
ONNXCAM_API int onnxcam_raw_maps(const float* activations, size_t N, size_t K, size_t h, size_t w,
                                 const float* alpha, size_t alpha_N, size_t alpha_h, size_t alpha_w, float* raws,
                                 int threads);

/* maps (N, H, W) in [0, 1] of raw maps (N, h, w): max(., 0), min-max, half-pixel bilinear resize, min-max. */
ONNXCAM_API int onnxcam_heat_maps_of_raw(const float* raws, size_t N, size_t h, size_t w, float* maps, size_t H,
                                         size_t W, int threads);

/* Both at once: maps (N, H, W) in [0, 1]. */
ONNXCAM_API int onnxcam_heat_maps(const float* activations, size_t N, size_t K, size_t h, size_t w,
                                  const float* alpha, size_t alpha_N, size_t alpha_h, size_t alpha_w, float* maps,
                                  size_t H, size_t W, int threads);

/* colors (256, 3): the RGB colours called `jet`, `viridis`, `hot` or `gray`, from value 0 to value 1. */
ONNXCAM_API int onnxcam_colormap(const char* name, uint8_t* colors);

/* rgba (pixels, 4): the colours of values in [0, 1] as a layer to draw over a picture; alpha is the opacity in
 * 255ths, not multiplied into the colours, and 0 where the value is NaN. */
ONNXCAM_API int onnxcam_colored(const float* values, size_t pixels, const uint8_t* colors, float opacity,
                                uint8_t* rgba);

/* out (pixels, 3): the RGB picture with the colours blended over it; where a value is NaN the picture alone. */
ONNXCAM_API int onnxcam_overlay(const uint8_t* picture, const float* values, size_t pixels, const uint8_t* colors,
                                float opacity, uint8_t* out);

#ifdef __cplusplus
}
#endif

#endif
