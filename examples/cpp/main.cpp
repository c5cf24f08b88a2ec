/// explain MODEL.cam.onnx PICTURE.ppm OUT.ppm [CLASS]
///
/// Prints the class with the highest score, writes the picture with the heat map of CLASS (default: that class)
/// laid over, and the map itself beside it as OUT.pfm. The picture has the size that the model takes.

#include <algorithm>
#include <cstdio>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>

#include "model.hpp"
#include "onnxcam/postprocess.hpp"

namespace {

Picture read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string kind;
    std::size_t W = 0, H = 0, highest = 0;
    if (!(file >> kind >> W >> H >> highest) || kind != "P6" || highest != 255) {
        throw std::runtime_error(path + " is not a binary PPM of 8 bits; make one: `convert dog.jpg dog.ppm`");
    }
    file.get();
    Picture picture{H, W, std::vector<std::uint8_t>(3 * H * W)};
    file.read(reinterpret_cast<char*>(picture.rgb.data()), static_cast<std::streamsize>(picture.rgb.size()));
    if (!file) throw std::runtime_error(path + " ends early");
    return picture;
}

void write(const std::string& path, const std::string& head, const void* data, std::size_t bytes) {
    std::ofstream file(path, std::ios::binary);
    file << head;
    file.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
    if (!file.flush()) throw std::runtime_error(path + " cannot be written");
}

void check(onnxcam::Status status) {
    if (status != onnxcam::Status::ok) throw std::runtime_error(onnxcam::describe(status));
}

void explain(const std::string& model_path, const std::string& picture_path, const std::string& out,
             std::int64_t class_index) {
    const Picture picture = read_ppm(picture_path);
    Model model(model_path);
    const auto [H, W] = model.size();
    if (picture.H != H || picture.W != W) {
        throw std::runtime_error(picture_path + " is " + std::to_string(picture.W) + "x" +
                                 std::to_string(picture.H) + "; make it " + std::to_string(W) + "x" +
                                 std::to_string(H) + " first");
    }
    Answer answer = model(picture, class_index);

    onnxcam::Colormap jet;
    Picture drawn = picture;
    check(onnxcam::colormap("jet", jet));
    check(onnxcam::overlay(picture.rgb.data(), answer.heatmap.data(), H * W, jet, 0.5F, drawn.rgb.data()));

    const auto best = std::max_element(answer.scores.begin(), answer.scores.end());
    std::printf("class %td, score %.6f\n", best - answer.scores.begin(), static_cast<double>(*best));
    const std::string size = std::to_string(W) + " " + std::to_string(H) + "\n";
    write(out, "P6\n" + size + "255\n", drawn.rgb.data(), drawn.rgb.size());
    for (std::size_t y = 0; y < H / 2; ++y) {  // PFM starts with the lowest row
        std::swap_ranges(&answer.heatmap[y * W], &answer.heatmap[y * W] + W, &answer.heatmap[(H - 1 - y) * W]);
    }
    write(out.substr(0, out.rfind('.')) + ".pfm", "Pf\n" + size + "-1.0\n", answer.heatmap.data(),
          answer.heatmap.size() * sizeof(float));
}

}  // namespace

int main(int count, char** arguments) {
    if (count < 4 || count > 5) {
        std::fprintf(stderr, "usage: %s MODEL.cam.onnx PICTURE.ppm OUT.ppm [CLASS]\n", arguments[0]);
        return 2;
    }
    try {
        explain(arguments[1], arguments[2], arguments[3], count == 5 ? std::stoll(arguments[4]) : -1);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
    return 0;
}
