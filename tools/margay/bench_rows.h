#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine/types.h"

namespace margay::cli {

/// Something to time.
struct BenchRow {
  std::string name;
  int64_t tokens = 0;       ///< of one call; 0 where that means nothing
  double flops = 0;         ///< of one call; 0 where they are not the point
  double bytes = 0;         ///< that one call moves at least; 0 likewise
  bool needs_bf16 = false;  ///< is for devices with instructions for bf16 products
  /// Prepares it; what it returns is called and timed again and again.
  std::function<std::function<void()>(Device)> prepare;
};

/// train/MODEL-L64 ...: whole training steps on multi-query associative recall, V = 8192, d = 64, batch 64, making the
/// examples included. `cat`, `lcat` and `lincat` have one layer with depthwise filters of width 4 on q, k and v, the
/// others two layers, `attention` with learned positions; all have tied embeddings and no MLP.
std::vector<BenchRow> training_rows();
/// train/byte_lm-L256 (and -bf16) and generate/byte_lm-B1, -B16: a language model of bytes with four layers of
/// attention and MLP, d = 256: a training step on 16 windows of 256 bytes, and the next byte of 1 or 16 texts.
/// large/gpt-L1024 (and -bf16): a training step of the shape of GPT-2 small on 8 windows of 1024 words, for a large
/// GPU.
std::vector<BenchRow> language_rows();
/// mixer/NAME-L1k ... -L64k: forward and backward pass of one mixer of width 64 over one sequence; lcat's blocks are of
/// the size that is best for the length. decode/NAME-L1k ...: the same mixer's next token after that many.
std::vector<BenchRow> mixer_rows();
/// op/NAME: single ops on shapes of those models, `forward` and `forward+backward`; op/NAME-bf16: with matrix products
/// in bf16, where the device has them.
std::vector<BenchRow> op_rows();
/// large/NAME: single ops on shapes that fill a large GPU, to be read beside large/copy and large/matmul-4096. They
/// take up to 2 GB.
std::vector<BenchRow> large_rows();

}  // namespace margay::cli
