// What the example programs share: reading a bundle's labels and raw tiles, and printing an answer a tile.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

constexpr size_t LARGEST_BATCH = 256;  // as sattrt cuts them: more at once take more memory, and are no faster

inline std::vector<char> read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file || std::filesystem::is_directory(path)) throw std::runtime_error(path + " can't be read. Check the path.");
    return {std::istreambuf_iterator<char>(file), {}};
}

inline std::vector<std::string> read_labels(const std::string& bundle) {
    std::ifstream file(bundle + "/labels.txt");
    if (!file) throw std::runtime_error(bundle + "/labels.txt can't be read. Give the folder of a bundle.");
    std::vector<std::string> names;
    for (std::string name; std::getline(file, name);) names.push_back(name);
    return names;
}

// Raw tiles, one after another, each of `bytes` bytes.
inline std::vector<uint8_t> read_tiles(const std::string& path, size_t bytes) {
    if (!bytes) throw std::runtime_error("The model takes tiles of no fixed size. Give one that sattrt exported.");
    const std::vector<char> content = read_file(path);
    if (content.empty() || content.size() % bytes)
        throw std::runtime_error(path + " holds no whole number of tiles of " + std::to_string(bytes) + " bytes. Cut tiles of that size.");
    return {content.begin(), content.end()};
}

// A line for each tile: its class and the probability of it.
inline void print_answers(const std::vector<std::string>& names, const float* probabilities, size_t tiles) {
    if (!std::all_of(probabilities, probabilities + tiles * names.size(), [](float value) { return std::isfinite(value); }))
        throw std::runtime_error("The model returned NaN or infinity. Use another model, or export again.");
    for (const float* row = probabilities; tiles--; row += names.size()) {
        const float* best = std::max_element(row, row + names.size());
        std::cout << names[best - row] << '\t' << *best << '\n';
    }
    if (!std::cout.flush()) throw std::runtime_error("The answers can't be written. Check where they go, and its free space.");
}
