// The smallest host program in C++: a bundle and raw tiles in, class names and probabilities out. OpenVINO on the CPU.
//
//     embed_openvino engines/eurosat model.int8-cpu.onnx tiles.raw     # N x 64 x 64 x 3 (or as many bands), one tile after another
//
// The pixels go in as they are: scaling, normalisation and softmax are inside the graph.

#include <openvino/openvino.hpp>

#include "tiles.hpp"

int main(int argc, char** argv) try {
    if (argc != 4) throw std::runtime_error("give a bundle, a model in it and a file of raw tiles");
    const std::string bundle = argv[1];
    const auto names = read_labels(bundle);

    ov::Core core;
    // by itself OpenVINO would compute what is fp32 in bf16 where the CPU can
    const auto precision = ov::hint::inference_precision(ov::element::f32);
    ov::CompiledModel model;
    try {
        model = core.compile_model(bundle + "/" + argv[2], "CPU", precision);
    } catch (const ov::Exception&) {  // several lines of OpenVINO's own
        throw std::runtime_error(bundle + "/" + argv[2] + " is no model that OpenVINO can load. Give the name of one in the bundle, as exported.");
    }
    ov::Shape shape = model.input("input").get_partial_shape().get_min_shape();  // (batch, height, width, bands)
    if (shape.size() != 4) throw std::runtime_error(std::string(argv[2]) + " takes no tiles of height, width and bands. Export it again.");
    const ov::element::Type type = model.input("input").get_element_type();  // u8, or u16 for digital numbers
    const size_t bytes = shape[1] * shape[2] * shape[3] * type.size();
    auto tiles = read_tiles(argv[3], bytes);
    const size_t count = tiles.size() / bytes;

    auto request = model.create_infer_request();
    for (size_t first = 0; first < count; first += LARGEST_BATCH) {
        shape[0] = std::min(LARGEST_BATCH, count - first);
        request.set_tensor("input", ov::Tensor(type, shape, tiles.data() + first * bytes));
        request.infer();
        const ov::Tensor answer = request.get_tensor("probabilities");
        if (answer.get_shape() != ov::Shape{shape[0], names.size()})
            throw std::runtime_error(bundle + " has another number of classes than its labels.txt. Export it again.");
        print_answers(names, answer.data<float>(), shape[0]);
    }
} catch (const std::exception& error) {
    std::cerr << "embed_openvino: " << error.what() << '\n';
    return 1;
}
