#pragma once

/// ONNXCAM_CLONES before a function compiles it once per instruction set; the loader picks the best for the CPU.
/// CMake defines ONNXCAM_CLONE_TARGETS where compiler and C library can do that, and nowhere else.

#ifdef ONNXCAM_CLONE_TARGETS
#define ONNXCAM_CLONES __attribute__((target_clones(ONNXCAM_CLONE_TARGETS)))
#else
#define ONNXCAM_CLONES
#endif

#ifdef _MSC_VER
#define ONNXCAM_RESTRICT __restrict
#else
#define ONNXCAM_RESTRICT __restrict__
#endif

/// Asks for the cache line of an address that will be written, where the compiler knows how.
#if defined(__GNUC__)
#define ONNXCAM_PREFETCH_FOR_WRITE(address) __builtin_prefetch(address, 1)
#else
#define ONNXCAM_PREFETCH_FOR_WRITE(address) static_cast<void>(address)
#endif
