#include <openvino/openvino.hpp>

#include "model.hpp"

struct Model::Session {
    ov::CompiledModel model;
};

Model::Model(const std::string& path)
    : session(new Session{ov::Core().compile_model(path, "CPU", ov::hint::inference_precision(ov::element::f32))}) {
}
Model::~Model() = default;

std::pair<std::size_t, std::size_t> Model::size() const {
    const auto shape = session->model.input("picture").get_partial_shape();  // the batch may be open
    return {shape[1].get_length(), shape[2].get_length()};
}

Answer Model::operator()(const Picture& picture, std::int64_t class_index) {
    ov::Tensor pixels(ov::element::u8, {1, picture.H, picture.W, 3}, const_cast<std::uint8_t*>(picture.rgb.data()));
    ov::Tensor index(ov::element::i64, {1}, &class_index);
    ov::InferRequest run = session->model.create_infer_request();
    run.set_tensor("picture", pixels);
    run.set_tensor("class_index", index);
    run.infer();
    const auto floats = [](const ov::Tensor& t) {
        return std::vector<float>(t.data<float>(), t.data<float>() + t.get_size());
    };
    return {floats(run.get_output_tensor(0)), floats(run.get_tensor("heatmap"))};
}
