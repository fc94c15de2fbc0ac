#include <fmt/format.h>

#include <cmath>
#include <memory>

#include "engine/autograd.h"
#include "engine/device.h"
#include "engine/rng.h"
#include "models/mixer.h"
#include "tools/margay/bench_rows.h"

namespace margay::cli {
namespace {

constexpr int64_t kWidth = 64;

ModelConfig config_of(const std::string& mixer, int64_t length) {
  ModelConfig config;
  config.mixer = {mixer};
  config.d_model = kWidth;
  config.n_layers = 2;
  config.max_seq_len = length;
  config.cat.conv_width = 4;
  // About the best size of blocks where each query sees one landmark a block and two whole blocks: sqrt(length / 2).
  config.lcat.block_size = int64_t{1} << std::lround(std::log2(static_cast<double>(length) / 2) / 2);
  return config;
}

/// One mixer by itself, in the second of two layers: base_conv's long filter is there.
struct MixerUnderTest {
  MixerUnderTest(const std::string& name, int64_t length, Device device)
      : mixer(make_mixer(config_of(name, length), 1, Scope(parameters, 1, DType::f32, device))) {}

  Parameters parameters;
  std::unique_ptr<Mixer> mixer;
};

Tensor tokens(int64_t count, Device device) {
  RandomStream random(1, static_cast<uint64_t>(count));
  std::vector<float> values(static_cast<size_t>(count * kWidth));
  for (float& value : values) value = static_cast<float>(random.normal());
  return from_values(values, {1, count, kWidth}, device);
}

std::function<void()> forward_and_backward(const std::string& name, int64_t length, Device device) {
  const auto test = std::make_shared<MixerUnderTest>(name, length, device);
  Tensor x = tokens(length, device).set_requires_grad();
  const Tensor seed = full(x.shape(), 1, DType::f32, device);
  return [=]() mutable {
    test->mixer->forward(x, {}, nullptr).backward(seed);
    for (Parameter& parameter : test->parameters) parameter.value.zero_grad();
    x.zero_grad();
    backend(device).synchronize();
  };
}

/// One token more after `length` of them. The timed steps lengthen the sequence, which is a small part of it.
std::function<void()> decode(const std::string& name, int64_t length, Device device) {
  constexpr int64_t kRoom = 4096;
  const NoGrad no_grad;
  const auto test = std::make_shared<MixerUnderTest>(name, length + kRoom, device);
  const std::shared_ptr<MixerState> state = test->mixer->start(1);
  test->mixer->forward(tokens(length, device), {}, state.get());
  return [=, x = tokens(1, device)] {
    const NoGrad no_grad_here;
    test->mixer->forward(x, {}, state.get());
    backend(device).synchronize();
  };
}

}  // namespace

std::vector<BenchRow> mixer_rows() {
  std::vector<BenchRow> rows;
  for (const std::string& name : mixer_names()) {
    for (const int64_t length : {1024, 4096, 16384, 65536}) {
      const std::string at = fmt::format("{}-L{}k", name, length / 1024);
      rows.push_back({.name = "mixer/" + at, .tokens = length, .flops = 0, .prepare = [=](Device device) {
                        return forward_and_backward(name, length, device);
                      }});
      rows.push_back({.name = "decode/" + at, .tokens = 1, .flops = 0, .prepare = [=](Device device) {
                        return decode(name, length, device);
                      }});
    }
  }
  return rows;
}

}  // namespace margay::cli
