#include "tasks/train/profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <tuple>

#include "engine/device.h"
#include "engine/error.h"

namespace margay {
namespace {

using Json = nlohmann::ordered_json;

double microseconds(int64_t nanoseconds) { return static_cast<double>(nanoseconds) / 1e3; }
double mebibytes(int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

std::string_view category(const ProfileEvent& event) {
  if (event.kind == ScopeKind::phase) return "phase";
  return event.backward ? "backward" : "forward";
}

/// Steps of the profile, at least one.
int64_t count_steps(const std::vector<ProfileEvent>& events) {
  const auto is_step = [](const ProfileEvent& event) { return event.kind == ScopeKind::phase && event.name == "step"; };
  return std::max<int64_t>(1, std::count_if(events.begin(), events.end(), is_step));
}

std::string rate(double amount, double seconds) {
  return amount > 0 && seconds > 0 ? fmt::format("{:.1f}", amount / seconds / 1e9) : "";
}

}  // namespace

std::vector<ProfileRow> profile_rows(const std::vector<ProfileEvent>& events) {
  std::map<std::tuple<std::string_view, bool, bool>, ProfileRow> rows;
  const auto row_of = [&](const ProfileEvent& event) -> ProfileRow& {
    const bool is_op = event.kind == ScopeKind::op;
    ProfileRow& row = rows[{event.name, event.backward, is_op}];
    row.name = event.name;
    row.backward = event.backward;
    row.is_op = is_op;
    return row;
  };
  for (const ProfileEvent& event : events) {
    if (event.end_ns == 0) continue;
    const ProfileEvent* const parent = event.parent >= 0 ? &events[static_cast<size_t>(event.parent)] : nullptr;
    if (parent && parent->kind == ScopeKind::op) continue;
    const double seconds = static_cast<double>(event.duration_ns()) / 1e9;
    ProfileRow& row = row_of(event);
    ++row.calls;
    row.seconds += seconds;
    if (row.is_op) {
      row.bytes += event.bytes;
      row.flops += event.flops;
    }
    if (parent && parent->end_ns > 0) row_of(*parent).seconds -= seconds;
  }
  std::vector<ProfileRow> sorted;
  for (auto& [key, row] : rows) sorted.push_back(std::move(row));
  std::sort(sorted.begin(), sorted.end(),
            [](const ProfileRow& a, const ProfileRow& b) { return a.seconds > b.seconds; });
  return sorted;
}

std::string to_chrome_trace(const Profile& profile) {
  Json events = Json::array();
  for (const ProfileEvent& event : profile.events) {
    if (event.end_ns == 0) continue;
    Json json{{"name", event.name},
              {"cat", category(event)},
              {"ph", "X"},
              {"ts", microseconds(event.begin_ns)},
              {"dur", microseconds(event.duration_ns())},
              {"pid", 1},
              {"tid", 1}};
    if (event.kind == ScopeKind::op) json["args"] = {{"bytes", event.bytes}, {"flops", event.flops}};
    events.push_back(std::move(json));
    events.push_back({{"name", "live memory"},
                      {"ph", "C"},
                      {"ts", microseconds(event.end_ns)},
                      {"pid", 1},
                      {"args", {{"MiB", mebibytes(event.live_bytes)}}}});
  }
  return Json{{"displayTimeUnit", "ms"}, {"traceEvents", std::move(events)}}.dump() + '\n';
}

std::string to_text(const Profile& profile) {
  const std::vector<ProfileRow> rows = profile_rows(profile.events);
  const auto steps = static_cast<double>(count_steps(profile.events));
  double seconds = 0;
  for (const ProfileRow& row : rows) seconds += row.seconds;
  std::string text = fmt::format("{:32} {:>10} {:>7} {:>9} {:>8} {:>8} {:>9}\n", fmt::format("{:g} steps", steps),
                                 "ms a step", "share", "calls", "GB/s", "GFLOP/s", "of limit");
  for (const ProfileRow& row : rows) {
    const std::string name = row.is_op ? row.name + (row.backward ? ", backward" : "") : "(" + row.name + ", other)";
    const double share =
        profile.limits.share(static_cast<double>(row.bytes), static_cast<double>(row.flops), row.seconds);
    text += fmt::format("{:32} {:10.3f} {:5.1f} % {:9.4g} {:>8} {:>8} {:>9}\n", name, 1e3 * row.seconds / steps,
                        100 * row.seconds / seconds, static_cast<double>(row.calls) / steps,
                        rate(static_cast<double>(row.bytes), row.seconds),
                        rate(static_cast<double>(row.flops), row.seconds),
                        share > 0 ? fmt::format("{:.0f} %", 100 * share) : "");
  }
  text += fmt::format("{:32} {:10.3f}\n", "all", 1e3 * seconds / steps);
  text += fmt::format("limits measured here: {:.1f} GB/s copied, {:.1f} GFLOP/s in products of f32\n\n",
                      profile.limits.bytes_per_second / 1e9, profile.limits.flops_per_second / 1e9);

  std::vector<std::pair<std::string, int64_t>> memory(profile.live_at_peak.begin(), profile.live_at_peak.end());
  std::sort(memory.begin(), memory.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  int64_t all = 0;
  for (const auto& [op, bytes] : memory) all += bytes;
  text += fmt::format("{:32} {:>10} {:>7}\n", "memory at the peak, made by", "MiB", "share");
  for (const auto& [op, bytes] : memory)
    text += fmt::format("{:32} {:10.2f} {:5.1f} %\n", op, mebibytes(bytes),
                        100 * static_cast<double>(bytes) / static_cast<double>(all));
  text += fmt::format("{:32} {:10.2f}\n", "all", mebibytes(all));
  return text;
}

void ProfiledTraining::on_start(const Trainer& trainer) {
  device_ = trainer.model().device();
  next_.on_start(trainer);
  if (skipped_ == 0) start(device_);
}

void ProfiledTraining::on_step(const Trainer& trainer, const Metrics& metrics) {
  ++done_;
  if (done_ == skipped_ + steps_) stop();
  next_.on_step(trainer, metrics);
  if (done_ == skipped_) start(device_);
}

void ProfiledTraining::start(Device device) {
  backend(device).allocator().reset_peak();
  profiler_ = std::make_unique<Profiler>(device);
}

void ProfiledTraining::stop() {
  profile_.events = profiler_->events();
  profile_.live_at_peak = backend(device_).allocator().live_at_peak();
  profiler_.reset();
}

Profile ProfiledTraining::finish() {
  if (profiler_) stop();
  if (profile_.events.empty())
    throw ConfigError(fmt::format("the profile is empty: training ended after {} steps, and the first {} are left out",
                                  done_, skipped_));
  profile_.limits = measure_limits(device_);
  return profile_;
}

}  // namespace margay
