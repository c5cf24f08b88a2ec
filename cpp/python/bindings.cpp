/// Python bindings: check every argument, release the GIL, call the kernel. No maths here.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "onnxcam/kernels.hpp"
#include "reference.hpp"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace py = pybind11;
using namespace pybind11::literals;

namespace {

template <class T>
using Dense = py::array_t<T, py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_>;

std::string shape_text(const py::array& array) {
    return py::str(py::tuple(array.attr("shape"))).cast<std::string>();
}

/// The array as dense T, copied only if it is not so already; `letters` is the expected shape, for the message.
template <class T>
Dense<T> dense(const py::array& array, const std::string& name, py::ssize_t rank, const std::string& letters) {
    if (!py::isinstance<py::array_t<T>>(array)) {
        throw py::type_error(name + ": expected dtype " + py::str(py::dtype::of<T>()).cast<std::string>() +
                             ", got " + py::str(array.dtype()).cast<std::string>());
    }
    if (array.ndim() != rank) {
        throw py::value_error(name + ": expected shape " + letters + ", got " + shape_text(array));
    }
    // What is dense already needs no more of NumPy.
    constexpr int wanted = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
    return (array.flags() & wanted) == wanted ? py::reinterpret_borrow<Dense<T>>(array) : Dense<T>(array);
}

void require_not_empty(const py::array& array, const std::string& name, py::ssize_t first_axis) {
    for (py::ssize_t axis = first_axis; axis < array.ndim(); ++axis) {
        if (array.shape(axis) == 0) {
            throw py::value_error(name + ": shape " + shape_text(array) + " has size 0 along axis " +
                                  std::to_string(axis));
        }
    }
}

std::size_t size(const py::array& array, py::ssize_t axis) {
    return static_cast<std::size_t>(array.shape(axis));
}

int checked_threads(int threads) {
    if (threads < 0)
        throw py::value_error("threads: expected 0 (automatic) or more, got " + std::to_string(threads));
    return threads;
}

float checked_epsilon(double epsilon) {
    const float value = static_cast<float>(epsilon);
    if (!(value >= 0.0F) || !std::isfinite(value)) {
        throw py::value_error("epsilon: expected a finite number of at least 0, got " +
                              py::repr(py::float_(epsilon)).cast<std::string>());
    }
    return value;
}

float checked_opacity(double opacity) {
    if (!(opacity >= 0.0 && opacity <= 1.0)) {
        throw py::value_error("opacity: expected a number in [0, 1], got " +
                              py::repr(py::float_(opacity)).cast<std::string>());
    }
    return static_cast<float>(opacity);
}

/// One axis of a resize: sizes that fit the kernel's 32-bit tables, a usable scale and offset.
onnxcam::Affine checked_axis(py::ssize_t source, py::ssize_t target, std::optional<double> scale, double offset,
                             const std::string& axis, const std::string& size_name) {
    constexpr py::ssize_t limit = std::numeric_limits<std::int32_t>::max();
    if (target < 1 || target > limit) {
        throw py::value_error(size_name + ": expected 1 to 2147483647, got " + std::to_string(target));
    }
    if (source > limit) {
        throw py::value_error("maps: expected at most 2147483647 along " + axis + ", got " +
                              std::to_string(source));
    }
    const double value = scale.value_or(static_cast<double>(source) / static_cast<double>(target));
    if (!(value > 0.0) || !std::isfinite(value)) {
        throw py::value_error(axis + "_scale: expected a finite number above 0, got " +
                              py::repr(py::float_(value)).cast<std::string>());
    }
    if (!std::isfinite(offset)) {
        throw py::value_error(axis + "_offset: expected a finite number, got " +
                              py::repr(py::float_(offset)).cast<std::string>());
    }
    return {value, offset};
}

py::array_t<float> new_maps(py::ssize_t N, py::ssize_t H, py::ssize_t W) {
    constexpr py::ssize_t limit = std::numeric_limits<py::ssize_t>::max() / static_cast<py::ssize_t>(sizeof(float));
    if (N > 0 && H > limit / W / N) {
        throw py::value_error("result: shape (" + std::to_string(N) + ", " + std::to_string(H) + ", " +
                              std::to_string(W) + ") is too large");
    }
    return py::array_t<float>(std::vector<py::ssize_t>{N, H, W});
}

template <class Kernel>
py::array_t<float> weighted_sum(const py::array& activations, const py::array& alpha, bool relu, Kernel kernel) {
    const auto a = dense<float>(activations, "activations", 4, "(N, K, h, w)");
    require_not_empty(a, "activations", 1);
    const auto weights = dense<float>(alpha, "alpha", 4, "(N, K, 1, 1) or (N, K, h, w)");
    const bool per_sample = alpha.shape(0) == a.shape(0);
    const bool per_channel = alpha.shape(2) == 1 && alpha.shape(3) == 1;
    const bool per_pixel = alpha.shape(2) == a.shape(2) && alpha.shape(3) == a.shape(3);
    if (!(per_sample || alpha.shape(0) == 1) || alpha.shape(1) != a.shape(1) || !(per_channel || per_pixel)) {
        throw py::value_error("alpha: shape " + shape_text(alpha) +
                              " does not broadcast as (N or 1, K, 1, 1) or (N or 1, K, h, w) against activations " +
                              shape_text(activations));
    }
    auto maps = new_maps(a.shape(0), a.shape(2), a.shape(3));
    float* const out = maps.mutable_data();
    const py::gil_scoped_release released;
    kernel(a.data(), weights.data(), onnxcam::AlphaLayout{per_sample, !per_channel}, out, size(a, 0), size(a, 1),
           size(a, 2) * size(a, 3), relu);
    return maps;
}

template <class Kernel>
py::array_t<float> resize_bilinear(const py::array& maps, py::ssize_t height, py::ssize_t width,
                                   std::optional<double> y_scale, double y_offset, std::optional<double> x_scale,
                                   double x_offset, Kernel kernel) {
    const auto source = dense<float>(maps, "maps", 3, "(N, h, w)");
    require_not_empty(source, "maps", 1);
    const auto y = checked_axis(source.shape(1), height, y_scale, y_offset, "y", "height");
    const auto x = checked_axis(source.shape(2), width, x_scale, x_offset, "x", "width");
    auto resized = new_maps(source.shape(0), height, width);
    float* const out = resized.mutable_data();
    const py::gil_scoped_release released;
    kernel(source.data(), out, size(source, 0), size(source, 1), size(source, 2), static_cast<std::size_t>(height),
           static_cast<std::size_t>(width), y, x);
    return resized;
}

template <class Kernel>
py::array_t<float> min_max(const py::array& maps, double epsilon, Kernel kernel) {
    const auto source = dense<float>(maps, "maps", 3, "(N, h, w)");
    require_not_empty(source, "maps", 1);
    const float addend = checked_epsilon(epsilon);
    auto scaled = new_maps(source.shape(0), source.shape(1), source.shape(2));
    float* const out = scaled.mutable_data();
    const py::gil_scoped_release released;
    kernel(source.data(), out, size(source, 0), size(source, 1) * size(source, 2), addend);
    return scaled;
}

template <class Kernel>
py::array_t<std::uint8_t> overlay(const py::array& picture, const py::array& values, const py::array& colormap,
                                  double opacity, Kernel kernel) {
    const auto pixels = dense<std::uint8_t>(picture, "picture", 3, "(H, W, 3)");
    if (picture.shape(2) != 3) {
        throw py::value_error("picture: expected shape (H, W, 3), got " + shape_text(picture));
    }
    require_not_empty(picture, "picture", 0);
    const auto heat = dense<float>(values, "values", 2, "(H, W)");
    if (values.shape(0) != picture.shape(0) || values.shape(1) != picture.shape(1)) {
        throw py::value_error("values: shape " + shape_text(values) + " does not match picture " +
                              shape_text(picture));
    }
    const auto colours = dense<std::uint8_t>(colormap, "colormap", 2, "(256, 3)");
    if (colormap.shape(0) != 256 || colormap.shape(1) != 3) {
        throw py::value_error("colormap: expected shape (256, 3), got " + shape_text(colormap));
    }
    const float strength = checked_opacity(opacity);
    py::array_t<std::uint8_t> coloured(std::vector<py::ssize_t>{picture.shape(0), picture.shape(1), 3});
    std::uint8_t* const out = coloured.mutable_data();
    const py::gil_scoped_release released;
    kernel(pixels.data(), heat.data(), colours.data(), strength, out, size(pixels, 0) * size(pixels, 1));
    return coloured;
}

void define_kernels(py::module_& m) {
    m.def(
        "weighted_sum",
        [](const py::array& activations, const py::array& alpha, bool relu, int threads) {
            return weighted_sum(activations, alpha, relu, [n = checked_threads(threads)](auto... arguments) {
                onnxcam::weighted_sum(arguments..., n);
            });
        },
        "activations"_a, "alpha"_a, "relu"_a, "threads"_a = 0,
        R"(Maps (N, h, w), float32: the sum over channels of alpha times activations, then max(., 0) if `relu`.

activations: float32 (N, K, h, w); alpha: float32 (N, K, 1, 1) or (N, K, h, w), or the same with 1 for N.
Summed in float64, channels ascending, rounded once. A NaN stays NaN, with and without `relu`.
threads: at most so many, 0 the machine's, fewer where the work is small; the same bits for any number.
Raises TypeError for another dtype, ValueError for shapes that do not fit or have size 0 after N.)");

    m.def(
        "resize_bilinear",
        [](const py::array& maps, py::ssize_t height, py::ssize_t width, std::optional<double> y_scale,
           double y_offset, std::optional<double> x_scale, double x_offset, int threads) {
            return resize_bilinear(
                maps, height, width, y_scale, y_offset, x_scale, x_offset,
                [n = checked_threads(threads)](auto... arguments) { onnxcam::resize_bilinear(arguments..., n); });
        },
        "maps"_a, "height"_a, "width"_a, "y_scale"_a = py::none(), "y_offset"_a = 0.0, "x_scale"_a = py::none(),
        "x_offset"_a = 0.0, "threads"_a = 0,
        R"(Maps (N, height, width), float32: `maps` (N, h, w), float32, sampled bilinearly.

Output pixel i reads source coordinate (i + 0.5) * scale + offset - 0.5, clamped to the edge, without
antialias. scale defaults to h / height and w / width: half-pixel resizing as in OpenCV INTER_LINEAR, torch
align_corners=False and ONNX Resize. Another scale and offset place the maps in a crop or a letterbox.
A NaN comes out at every pixel that reads it. threads: at most so many, 0 the machine's.
Raises TypeError for another dtype, ValueError for wrong shapes, scale <= 0, or numbers that are not finite.)");

    m.def(
        "min_max", [](const py::array& maps, double epsilon) { return min_max(maps, epsilon, onnxcam::min_max); },
        "maps"_a, "epsilon"_a = 1e-7,
        R"(Maps (N, h, w), float32 in [0, 1]: per map (m - min m) * (1 / (epsilon + max(m - min m))).

A constant map becomes zeros, and so does one whose range is too small to divide by. A map with a NaN or an
infinity becomes NaN throughout, so that it is seen.
Raises TypeError for another dtype, ValueError for a wrong shape or a negative or non-finite epsilon.)");

    m.def(
        "saliency_maps",
        [](const py::array& maps, py::ssize_t height, py::ssize_t width, std::optional<double> y_scale,
           double y_offset, std::optional<double> x_scale, double x_offset, int threads, double epsilon) {
            return resize_bilinear(maps, height, width, y_scale, y_offset, x_scale, x_offset,
                                   [e = checked_epsilon(epsilon), n = checked_threads(threads)](auto... arguments) {
                                       onnxcam::saliency_maps(arguments..., e, n);
                                   });
        },
        "maps"_a, "height"_a, "width"_a, "y_scale"_a = py::none(), "y_offset"_a = 0.0, "x_scale"_a = py::none(),
        "x_offset"_a = 0.0, "threads"_a = 0, "epsilon"_a = 1e-7,
        R"(Maps (N, height, width), float32 in [0, 1]: max(`maps`, 0), min_max, resize_bilinear, min_max.

maps: the signed raw maps, float32 (N, h, w); the other arguments as of the steps. The same bits as the four steps
give, in one call that writes the result once.)");

    m.def(
        "overlay",
        [](const py::array& picture, const py::array& values, const py::array& colormap, double opacity) {
            return overlay(picture, values, colormap, opacity, onnxcam::overlay);
        },
        "picture"_a, "values"_a, "colormap"_a, "opacity"_a,
        R"(Picture (H, W, 3), uint8: (1 - opacity) * picture + opacity * colormap[value], rounded, halves upwards.

picture: uint8 (H, W, 3); values: float32 (H, W), clamped to [0, 1]; colormap: uint8 (256, 3), of which the
entry nearest to value * 255 is taken; opacity in [0, 1]. Where a value is NaN the picture stays uncoloured.
Raises TypeError for another dtype, ValueError for shapes that do not fit or an opacity out of range.)");
}

void define_reference(py::module_& m) {
    namespace reference = onnxcam::reference;
    m.def(
        "weighted_sum",
        [](const py::array& activations, const py::array& alpha, bool relu) {
            return weighted_sum(activations, alpha, relu, reference::weighted_sum);
        },
        "activations"_a, "alpha"_a, "relu"_a);
    m.def(
        "resize_bilinear",
        [](const py::array& maps, py::ssize_t height, py::ssize_t width, std::optional<double> y_scale,
           double y_offset, std::optional<double> x_scale, double x_offset) {
            return resize_bilinear(maps, height, width, y_scale, y_offset, x_scale, x_offset,
                                   reference::resize_bilinear);
        },
        "maps"_a, "height"_a, "width"_a, "y_scale"_a = py::none(), "y_offset"_a = 0.0, "x_scale"_a = py::none(),
        "x_offset"_a = 0.0);
    m.def(
        "min_max", [](const py::array& maps, double epsilon) { return min_max(maps, epsilon, reference::min_max); },
        "maps"_a, "epsilon"_a = 1e-7);
    m.def(
        "saliency_maps",
        [](const py::array& maps, py::ssize_t height, py::ssize_t width, std::optional<double> y_scale,
           double y_offset, std::optional<double> x_scale, double x_offset, double epsilon) {
            return resize_bilinear(
                maps, height, width, y_scale, y_offset, x_scale, x_offset,
                [e = checked_epsilon(epsilon)](auto... arguments) { reference::saliency_maps(arguments..., e); });
        },
        "maps"_a, "height"_a, "width"_a, "y_scale"_a = py::none(), "y_offset"_a = 0.0, "x_scale"_a = py::none(),
        "x_offset"_a = 0.0, "epsilon"_a = 1e-7);
    m.def(
        "overlay",
        [](const py::array& picture, const py::array& values, const py::array& colormap, double opacity) {
            return overlay(picture, values, colormap, opacity, reference::overlay);
        },
        "picture"_a, "values"_a, "colormap"_a, "opacity"_a);
}

}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
    m.doc() = "Kernels that turn activations and weights into heat maps; dense C++, bit-identical on every CPU.";
    define_kernels(m);
    m.def(
        "release_free_memory",
        [] {
#if defined(__GLIBC__)
            malloc_trim(0);
#endif
        },
        py::call_guard<py::gil_scoped_release>(),
        "Return freed blocks to the operating system where the C library keeps them (glibc); elsewhere nothing.");
    auto reference = m.def_submodule("reference", "The same kernels, written plainly: the oracle of the tests.");
    define_reference(reference);
}
