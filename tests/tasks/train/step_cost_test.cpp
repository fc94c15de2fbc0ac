// What a training step costs, counted and not timed: so a change that makes a step dearer is seen on every machine.

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <string>

#include "engine/device.h"
#include "engine/profiler.h"
#include "tasks/presets.h"
#include "tasks/train/trainer.h"

namespace margay::test {
namespace {

/// Of one step.
struct StepCost {
  int64_t ops = 0;         ///< scopes of ops, forward and backward
  int64_t kiloflops = 0;   ///< of matrix products
  int64_t kilobytes = 0;   ///< taken and given by ops
  int64_t peak_bytes = 0;  ///< live above what is live between steps
};

StepCost measure(std::string_view mixer) {
  const std::string preset = fmt::format("mqar-64-{}", mixer);
  Config config = parse_config(find_preset(preset).toml, preset);
  config.train.batch_size = 4;
  Trainer trainer(config);
  trainer.step();
  CachingAllocator& allocator = cpu_backend().allocator();
  allocator.reset_peak();
  const int64_t live = allocator.counters().live;
  const Profiler profiler({});
  trainer.step();
  StepCost cost;
  for (const ProfileEvent& event : profiler.events()) {
    if (event.kind != ScopeKind::op) continue;
    ++cost.ops;
    const bool outermost = profiler.events()[static_cast<size_t>(event.parent)].kind == ScopeKind::phase;
    if (outermost) cost.kilobytes += event.bytes;
    if (outermost) cost.kiloflops += event.flops;
  }
  cost.kilobytes /= 1000;
  cost.kiloflops /= 1000;
  cost.peak_bytes = allocator.counters().peak - live;
  return cost;
}

/// As measured, on a batch of 4.
struct KnownCost {
  std::string_view mixer;
  StepCost cost;
};
constexpr KnownCost kKnown[] = {
    {"attention", {47, 100466, 26037, 6816344}},  {"base_conv", {62, 80097, 27121, 6919768}},
    {"based", {57, 91590, 26818, 6937176}},       {"cat", {48, 100466, 26549, 7015256}},
    {"delta_net", {113, 118226, 35118, 8543832}}, {"gated_delta_net", {167, 169345, 43046, 10102392}},
    {"gla", {99, 109576, 29423, 7431768}},        {"h3", {125, 117440, 32841, 8013400}},
    {"hyena", {161, 126976, 34316, 8144472}},     {"lcat", {60, 96866, 27148, 7033692}},
    {"lincat", {48, 100466, 26549, 7873816}},     {"linear_attention", {67, 133824, 28181, 7261784}},
    {"mamba", {97, 158334, 35276, 9454360}},      {"mamba2", {109, 187039, 35767, 8476280}},
    {"retnet", {71, 117440, 28696, 7464536}},     {"rwkv", {123, 117440, 31346, 7695960}},
    {"s4d", {67, 92274, 28475, 7194200}},
};

}  // namespace

TEST_CASE("a training step costs what it is known to cost") {
  constexpr double kTolerance = 1.05;
  for (const auto& [mixer, known] : kKnown) {
    const StepCost cost = measure(mixer);
    const auto near = [](int64_t now, int64_t before) {  // a step that has become cheaper is to stay so
      const double ratio = static_cast<double>(now) / static_cast<double>(before);
      return ratio <= kTolerance && ratio >= 1 / kTolerance;
    };
    const bool same = near(cost.ops, known.ops) && near(cost.kiloflops, known.kiloflops) &&
                      near(cost.kilobytes, known.kilobytes) && near(cost.peak_bytes, known.peak_bytes);
    CHECK_MESSAGE(same, fmt::format("now {{\"{}\", {{{}, {}, {}, {}}}}},", mixer, cost.ops, cost.kiloflops,
                                    cost.kilobytes, cost.peak_bytes));
  }
}

}  // namespace margay::test
