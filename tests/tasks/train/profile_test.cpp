#include "tasks/train/profile.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "engine/error.h"
#include "tests/tasks/train/tiny_run.h"

namespace margay::test {
namespace {

constexpr int64_t kMillisecond = 1'000'000;

/// Two steps: an op that calls another, an op in the backward pass, and time between.
std::vector<ProfileEvent> two_steps() {
  std::vector<ProfileEvent> events;
  for (int64_t step = 0; step < 2; ++step) {
    const int first = static_cast<int>(events.size());
    const auto add = [&](std::string_view name, ScopeKind kind, int parent, bool backward, int64_t begin, int64_t end) {
      events.push_back({.name = name,
                        .kind = kind,
                        .parent = parent < 0 ? -1 : first + parent,
                        .backward = backward,
                        .begin_ns = (100 * step + begin) * kMillisecond,
                        .end_ns = (100 * step + end) * kMillisecond,
                        .flops = kind == ScopeKind::op ? 1000 : 0,
                        .bytes = 0,
                        .live_bytes = 0});
    };
    add("step", ScopeKind::phase, -1, false, 0, 50);
    add("linear", ScopeKind::op, 0, false, 10, 30);
    add("matmul", ScopeKind::op, 1, false, 12, 20);
    add("backward", ScopeKind::phase, 0, true, 30, 45);
    add("linear", ScopeKind::op, 3, true, 31, 41);
  }
  return events;
}

const ProfileRow& row(const std::vector<ProfileRow>& rows, std::string_view name, bool backward) {
  return *std::find_if(rows.begin(), rows.end(),
                       [&](const ProfileRow& r) { return r.name == name && r.backward == backward; });
}

/// Counts what it is told.
struct Listener final : TrainObserver {
  int steps = 0;
  void on_step(const Trainer&, const Metrics&) override { ++steps; }
};

}  // namespace

TEST_CASE("rows of a profile share out all of its time") {
  const std::vector<ProfileRow> rows = profile_rows(two_steps());
  REQUIRE(rows.size() == 4);  // matmul counts as part of linear
  CHECK(row(rows, "linear", false).seconds == doctest::Approx(0.040));
  CHECK(row(rows, "linear", false).calls == 2);
  CHECK(row(rows, "linear", false).flops == 2000);
  CHECK(row(rows, "linear", true).seconds == doctest::Approx(0.020));
  CHECK(row(rows, "backward", true).seconds == doctest::Approx(0.010));
  CHECK(row(rows, "step", false).seconds == doctest::Approx(0.030));
  CHECK(rows.front().name == "linear");
}

TEST_CASE("the limits of a device are measured, and plausible") {
  const DeviceLimits known{.bytes_per_second = 1e9, .flops_per_second = 1e5};
  CHECK(known.share(1e6, 2000, 0.040) == doctest::Approx(0.5));
  CHECK(known.share(3e7, 2000, 0.040) == doctest::Approx(0.75));
  CHECK(known.share(1e6, 2000, 0) == 0);
  const DeviceLimits limits = measure_limits({});
  CHECK(limits.bytes_per_second > 1e8);
  CHECK(limits.bytes_per_second < 1e13);
  CHECK(limits.flops_per_second > 1e8);
  CHECK(limits.flops_per_second < 1e15);
}

TEST_CASE("some steps of a training are profiled, and the training is the same") {
  const Threads one(1);
  Config config = tiny_config();
  config.train.steps = 6;
  Listener plain, listener;
  Trainer alone(config), profiled(config);
  REQUIRE(train(alone, plain));
  ProfiledTraining observer(listener, 2, 3);
  REQUIRE(train(profiled, observer));
  CHECK(listener.steps == 6);
  CHECK(alone.state().train_loss == profiled.state().train_loss);

  const Profile profile = observer.finish();
  const auto count = [&](std::string_view name) {
    return std::count_if(profile.events.begin(), profile.events.end(),
                         [&](const ProfileEvent& event) { return event.name == name; });
  };
  for (const std::string_view phase : {"step", "data", "forward", "backward", "optimizer", "adamw_step"})
    CHECK_MESSAGE(count(phase) == 3, phase);
  CHECK(profile.live_at_peak.size() > 1);

  const nlohmann::json trace = nlohmann::json::parse(to_chrome_trace(profile));
  std::set<std::string> names;
  double end_of_last_step = 0;
  for (const nlohmann::json& event : trace["traceEvents"]) {
    names.insert(event["name"]);
    if (event["ph"] == "C") CHECK(event["args"]["MiB"] > 0);
    if (event["ph"] != "X") continue;
    CHECK(event["dur"] >= 0);
    if (event["name"] != "step") continue;
    CHECK(event["ts"] >= end_of_last_step);
    end_of_last_step = event["ts"].get<double>() + event["dur"].get<double>();
  }
  CHECK(names.contains("linear_cross_entropy"));
  CHECK(names.contains("live memory"));

  const std::string text = to_text(profile);
  for (const char* part : {"3 steps", "linear_cross_entropy, backward", "(step, other)", "memory at the peak"})
    CHECK_MESSAGE(text.find(part) != std::string::npos, part);
}

TEST_CASE("a training that ends before its profile begins says so") {
  const Threads one(1);
  Config config = tiny_config();
  config.train.steps = 2;
  Listener listener;
  Trainer trainer(config);
  ProfiledTraining observer(listener, 5, 3);
  REQUIRE(train(trainer, observer));
  CHECK_THROWS_WITH_AS(observer.finish(),
                       "the profile is empty: training ended after 2 steps, and the first 5 are left out", ConfigError);
}

}  // namespace margay::test
