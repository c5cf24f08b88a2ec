#pragma once

/// What the program needs of an inference runtime. Every runtime has one file that implements it.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

struct Picture {
    std::size_t H, W;
    std::vector<std::uint8_t> rgb;  ///< (H, W, 3)
};

struct Answer {
    std::vector<float> scores;   ///< (C,) of the model's first output
    std::vector<float> heatmap;  ///< (H, W) in [0, 1]
};

/// A file of `onnxcam export --picture-input --class-input required`. Throws what the runtime throws.
class Model {
  public:
    explicit Model(const std::string& path);
    ~Model();

    /// (H, W) of the pictures it takes.
    std::pair<std::size_t, std::size_t> size() const;

    /// Predicts and explains in one run; class -1 is the predicted one.
    Answer operator()(const Picture& picture, std::int64_t class_index);

  private:
    struct Session;
    std::unique_ptr<Session> session;
};
