#include <onnxruntime_cxx_api.h>

#include <array>

#include "model.hpp"

struct Model::Session {
    Ort::Env environment{ORT_LOGGING_LEVEL_ERROR};
    Ort::Session model{nullptr};
};

Model::Model(const std::string& path) : session(new Session) {
    const std::basic_string<ORTCHAR_T> name(path.begin(), path.end());
    session->model = Ort::Session(session->environment, name.c_str(), Ort::SessionOptions());
}
Model::~Model() = default;

std::pair<std::size_t, std::size_t> Model::size() const {
    const auto shape = session->model.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
    return {static_cast<std::size_t>(shape[1]), static_cast<std::size_t>(shape[2])};
}

Answer Model::operator()(const Picture& picture, std::int64_t class_index) {
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
    const std::array<std::int64_t, 4> shape{1, static_cast<std::int64_t>(picture.H),
                                            static_cast<std::int64_t>(picture.W), 3};
    const std::array<std::int64_t, 1> one{1};
    const std::array<Ort::Value, 2> inputs{
        Ort::Value::CreateTensor<std::uint8_t>(memory, const_cast<std::uint8_t*>(picture.rgb.data()),
                                               picture.rgb.size(), shape.data(), shape.size()),
        Ort::Value::CreateTensor<std::int64_t>(memory, &class_index, 1, one.data(), one.size())};
    Ort::AllocatorWithDefaultOptions allocator;
    const auto scores = session->model.GetOutputNameAllocated(0, allocator);
    const std::array<const char*, 2> given{"picture", "class_index"}, asked{scores.get(), "heatmap"};
    const auto outputs = session->model.Run(Ort::RunOptions(), given.data(), inputs.data(), inputs.size(),
                                            asked.data(), asked.size());
    const auto floats = [](const Ort::Value& t) {
        const float* first = t.GetTensorData<float>();
        return std::vector<float>(first, first + t.GetTensorTypeAndShapeInfo().GetElementCount());
    };
    return {floats(outputs[0]), floats(outputs[1])};
}
