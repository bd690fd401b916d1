// The same with TensorRT (10 or 11) or TensorRT-RTX on an NVIDIA GPU: a plan instead of a model.
//
//     embed_tensorrt engines/eurosat tensorrt-fp16.plan tiles.raw      # uint8, N x 64 x 64 x 3, one tile after another
//
// A plan is code for one kind of GPU and one version: check the bundle's digests (sattrt selftest, or sha256 against bundle.json) before
// you deserialise one that comes from somewhere else.

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <memory>

#include "tiles.hpp"

class Log : public nvinfer1::ILogger {
    void log(Severity severity, const char* message) noexcept override {
        if (severity <= Severity::kERROR) std::cerr << "TensorRT: " << message << '\n';
    }
};

static void check(cudaError_t status) {
    if (status != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status) + ". Check nvidia-smi.");
}

static size_t volume(const nvinfer1::Dims& shape) {  // of one tile: the batch comes first
    size_t values = 1;
    for (int i = 1; i < shape.nbDims; ++i) values *= static_cast<size_t>(shape.d[i]);
    return values;
}

int main(int argc, char** argv) try {
    if (argc != 4) throw std::runtime_error("give a bundle, a plan in it and a file of raw tiles");
    const std::string bundle = argv[1];
    const auto names = read_labels(bundle);
    const auto plan = read_file(bundle + "/" + argv[2]);
    int gpus = 0;
    check(cudaGetDeviceCount(&gpus));  // before TensorRT is touched: without a driver it may end the process

    Log log;
    std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(log));
    if (!runtime) throw std::runtime_error("TensorRT can't start here. Check nvidia-smi.");
    std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime->deserializeCudaEngine(plan.data(), plan.size()));
    if (!engine) throw std::runtime_error(std::string(argv[2]) + " was built for another GPU or TensorRT. Export the bundle here.");
    if (engine->isRefittable())
        throw std::runtime_error(std::string(argv[2]) + " has no weights, and this program can't put them in. Export without strip_weights.");
    std::unique_ptr<nvinfer1::IExecutionContext> context(engine->createExecutionContext());
    if (!context) throw std::runtime_error("The GPU has no memory left. Close other programs.");

    nvinfer1::Dims shape = engine->getTensorShape("input");  // (batch, height, width, bands)
    if (shape.nbDims != 4) throw std::runtime_error(std::string(argv[2]) + " takes no tiles of height, width and bands. Export it again.");
    const size_t bytes = volume(shape), classes = volume(engine->getTensorShape("probabilities"));
    if (classes != names.size()) throw std::runtime_error(bundle + " has another number of classes than its labels.txt. Export it again.");
    const auto least = static_cast<size_t>(engine->getProfileShape("input", 0, nvinfer1::OptProfileSelector::kMIN).d[0]);
    const auto most = static_cast<size_t>(engine->getProfileShape("input", 0, nvinfer1::OptProfileSelector::kMAX).d[0]);
    const size_t largest = std::max(least, std::min(LARGEST_BATCH, most));
    const auto tiles = read_tiles(argv[3], bytes);
    const size_t count = tiles.size() / bytes;

    cudaStream_t stream;
    check(cudaStreamCreate(&stream));
    uint8_t* input;
    float *logits, *probabilities;
    check(cudaMalloc(reinterpret_cast<void**>(&input), largest * bytes));
    check(cudaMalloc(reinterpret_cast<void**>(&logits), largest * classes * sizeof(float)));
    check(cudaMalloc(reinterpret_cast<void**>(&probabilities), largest * classes * sizeof(float)));
    context->setTensorAddress("input", input);
    context->setTensorAddress("logits", logits);
    context->setTensorAddress("probabilities", probabilities);

    std::vector<float> answer(count * classes);
    for (size_t first = 0; first < count; first += largest) {
        const size_t batch = std::min(largest, count - first);
        shape.d[0] = static_cast<int>(std::max(batch, least));  // what lies behind the tiles is answered too, and not read
        check(cudaMemcpyAsync(input, tiles.data() + first * bytes, batch * bytes, cudaMemcpyHostToDevice, stream));
        if (!context->setInputShape("input", shape) || !context->enqueueV3(stream))
            throw std::runtime_error("TensorRT refused to run the plan. Export the bundle here.");
        check(cudaMemcpyAsync(answer.data() + first * classes, probabilities, batch * classes * sizeof(float), cudaMemcpyDeviceToHost, stream));
        check(cudaStreamSynchronize(stream));
    }
    print_answers(names, answer.data(), count);
    for (void* buffer : {static_cast<void*>(input), static_cast<void*>(logits), static_cast<void*>(probabilities)}) check(cudaFree(buffer));
    check(cudaStreamDestroy(stream));
} catch (const std::exception& error) {
    std::cerr << "embed_tensorrt: " << error.what() << '\n';
    return 1;
}
