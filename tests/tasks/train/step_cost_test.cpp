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
    {"attention", {47, 70733, 25484, 7279108}},  {"base_conv", {72, 57421, 26416, 7326148}},
    {"based", {62, 68915, 26527, 7466436}},      {"cat", {48, 70733, 25996, 7478020}},
    {"delta_net", {122, 95551, 34582, 8942276}}, {"gated_delta_net", {181, 128974, 40822, 10013412}},
    {"gla", {108, 86900, 28887, 7830212}},       {"h3", {135, 94765, 32338, 8358340}},
    {"hyena", {171, 104300, 33796, 8485316}},    {"lcat", {65, 74190, 26857, 7562952}},
    {"lincat", {53, 77791, 26259, 7872644}},     {"linear_attention", {72, 111149, 27890, 7791044}},
    {"mamba", {102, 129761, 35001, 9453188}},    {"mamba2", {119, 146669, 34526, 8635940}},
    {"retnet", {80, 94765, 28160, 7862980}},     {"rwkv", {133, 88866, 30334, 7975364}},
    {"s4d", {72, 63700, 27447, 7473604}},
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
