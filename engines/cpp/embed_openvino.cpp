// The smallest host program in C++: a bundle and raw tiles in, class names and probabilities out. OpenVINO on the CPU.
//
//     embed_openvino engines/eurosat model.int8-cpu.onnx tiles.raw     # uint8, N x 64 x 64 x 3, one tile after another
//
// The pixels go in as they are: scaling, normalisation and softmax are inside the graph.

#include <algorithm>
#include <cstdint>
#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include <openvino/openvino.hpp>

static std::ifstream open(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(path + " can't be read. Check the path.");
    return file;
}

int main(int argc, char** argv) try {
    if (argc != 4) throw std::runtime_error("give a bundle, a model in it and a file of raw tiles");
    const std::string bundle = argv[1];

    std::vector<std::string> names;
    auto labels = open(bundle + "/labels.txt");
    for (std::string name; std::getline(labels, name);) names.push_back(name);

    ov::Core core;
    // by itself OpenVINO would compute what is fp32 in bf16 where the CPU can
    auto model = core.compile_model(bundle + "/" + argv[2], "CPU", ov::hint::inference_precision(ov::element::f32));
    ov::Shape shape = model.input("input").get_partial_shape().get_min_shape();  // (batch, height, width, bands)
    const size_t tile = shape[1] * shape[2] * shape[3];

    auto file = open(argv[3]);
    std::vector<uint8_t> tiles((std::istreambuf_iterator<char>(file)), {});
    if (tiles.empty() || tiles.size() % tile)
        throw std::runtime_error(std::string(argv[3]) + " holds no whole number of tiles of " + std::to_string(tile) + " bytes. Cut tiles of that size.");
    shape[0] = tiles.size() / tile;

    auto request = model.create_infer_request();
    request.set_tensor("input", ov::Tensor(ov::element::u8, shape, tiles.data()));
    request.infer();
    const ov::Tensor answer = request.get_tensor("probabilities");
    if (answer.get_shape() != ov::Shape{shape[0], names.size()})
        throw std::runtime_error(bundle + " has another number of classes than its labels.txt. Export it again.");
    const float* row = answer.data<float>();
    for (size_t i = 0; i < shape[0]; ++i, row += names.size()) {
        const float* best = std::max_element(row, row + names.size());
        std::cout << names[best - row] << '\t' << *best << '\n';
    }
} catch (const std::exception& error) {
    std::cerr << "embed_openvino: " << error.what() << '\n';
    return 1;
}
