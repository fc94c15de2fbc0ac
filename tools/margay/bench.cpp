#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>

#include "engine/device.h"
#include "engine/error.h"
#include "engine/names.h"
#include "engine/parallel.h"
#include "ops/precision.h"
#include "tasks/train/device_limits.h"
#include "tasks/train/process_memory.h"
#include "tools/margay/bench_rows.h"
#include "tools/margay/terminal.h"
#include "tools/margay/text.h"
#include "tools/margay/verbs.h"

namespace margay::cli {
namespace {

struct Timing {
  int64_t warmup = 5, steps = 10;
  double seconds = 2;
};

struct Result {
  const BenchRow* row;
  double median_ms, min_ms;
  int64_t steps, peak_rss_bytes;
  double of_limit;  // the time that the device's limits allow at best, by the median; 0 where nothing is counted
};

/// What the device can do, measured when a row asks for it first.
class Limits {
 public:
  explicit Limits(Device device) : device_(device) {}

  double share(const BenchRow& row, double seconds) {
    if (row.flops == 0 && row.bytes == 0) return 0;
    std::optional<DeviceLimits>& limits = row.needs_bf16 ? bf16_ : f32_;
    if (!limits) limits = measure_limits(device_, row.needs_bf16 ? Precision::bf16 : Precision::f32);
    return limits->share(row.bytes, row.flops, seconds);
  }

 private:
  Device device_;
  std::optional<DeviceLimits> f32_, bf16_;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

/// Times the row once it runs steadily, in a process whose memory is that of this row as far as the system can tell.
Result measure(const BenchRow& row, const Timing& timing, Device device, Limits& limits) {
  using Clock = std::chrono::steady_clock;
  backend(device).allocator().release_unused();
  reset_peak_rss();
  const std::function<void()> step = row.prepare(device);
  for (int64_t i = 0; i < timing.warmup; ++i) step();
  std::vector<double> milliseconds;
  double total = 0;
  while (static_cast<int64_t>(milliseconds.size()) < timing.steps || total < 1000 * timing.seconds) {
    const Clock::time_point begin = Clock::now();
    step();
    milliseconds.push_back(std::chrono::duration<double, std::milli>(Clock::now() - begin).count());
    total += milliseconds.back();
  }
  const int64_t peak = peak_rss_bytes();
  const double middle = median(milliseconds);
  return {&row,
          middle,
          *std::min_element(milliseconds.begin(), milliseconds.end()),
          static_cast<int64_t>(milliseconds.size()),
          peak,
          limits.share(row, middle / 1000)};
}

/// Rows called as wanted, or below it: "train" stands for all training rows. All but the large ones where nothing is
/// wanted.
std::vector<const BenchRow*> selected(const std::vector<BenchRow>& rows, const std::vector<std::string>& wanted) {
  std::vector<const BenchRow*> found;
  const auto matches = [](const std::string& row, const std::string& name) {
    return row == name || row.starts_with(name + '/');
  };
  for (const BenchRow& row : rows) {
    const bool hit =
        std::any_of(wanted.begin(), wanted.end(), [&](const auto& name) { return matches(row.name, name); });
    if (hit || (wanted.empty() && !row.name.starts_with("large/"))) found.push_back(&row);
  }
  for (const std::string& name : wanted) {
    if (std::any_of(rows.begin(), rows.end(), [&](const BenchRow& row) { return matches(row.name, name); })) continue;
    std::vector<std::string_view> names{"train", "generate", "mixer", "decode", "op", "large"};
    for (const BenchRow& row : rows) names.push_back(row.name);
    throw ConfigError(
        fmt::format("unknown row {}; the nearest is \"{}\"", margay::quoted(name), nearest_name(name, names)));
  }
  return found;
}

double per_second(double amount, const Result& result) { return 1000 * amount / result.median_ms; }

nlohmann::ordered_json as_json(const Result& result) {
  nlohmann::ordered_json json{{"name", result.row->name}, {"median_ms", result.median_ms},
                              {"min_ms", result.min_ms},  {"steps", result.steps},
                              {"threads", num_threads()}, {"peak_rss_bytes", result.peak_rss_bytes}};
  if (result.row->tokens > 0) json["tokens_per_second"] = per_second(static_cast<double>(result.row->tokens), result);
  if (result.row->flops > 0) json["gflops"] = per_second(result.row->flops, result) / 1e9;
  if (result.row->bytes > 0) json["gigabytes_per_second"] = per_second(result.row->bytes, result) / 1e9;
  if (result.of_limit > 0) json["of_limit"] = result.of_limit;
  return json;
}

std::string as_line(const Result& result) {
  const BenchRow& row = *result.row;
  const std::string speed = row.flops > 0   ? fmt::format("{:7.1f} GF/s", per_second(row.flops, result) / 1e9)
                            : row.bytes > 0 ? fmt::format("{:7.1f} GB/s", per_second(row.bytes, result) / 1e9)
                                            : "";
  const std::string tokens =
      row.tokens > 0 ? short_count(per_second(static_cast<double>(row.tokens), result)) + " tokens/s" : "";
  const std::string share = result.of_limit > 0 ? fmt::format("{:.0f} %", 100 * result.of_limit) : "";
  return fmt::format("{:44} {:9.3f} {:9.3f}  {:>10}  {:12} {:>8}  {}\n", row.name, result.median_ms, result.min_ms,
                     short_bytes(static_cast<double>(result.peak_rss_bytes)), speed, share, tokens);
}

int run(const Arguments& arguments) {
  std::vector<std::string> names;
  bool json = false, list = false;
  Timing timing;
  Device device;
  CommandLine line(
      "bench",
      "Times training steps, mixers and single ops: median and fastest, in milliseconds, after a warm-up. Peak memory\n"
      "is the process's; for exact figures give each row a process of its own. \"of limit\": the least time that the\n"
      "row's bytes take at the speed of a large copy, and its products at that of a large product, both measured "
      "here,\n"
      "by the median. Data that stays in a cache can exceed it.");
  line.arguments("NAME", names, "rows, or the start of their names up to a slash; all without");
  line.flag("--json", json, "print a JSON list of objects");
  line.flag("--list", list, "print the names of all rows and time nothing");
  line.option("--warmup N", timing.warmup, 0, "steps before the time starts [5]");
  line.option("--steps N", timing.steps, 1, "timed steps, at least [10]");
  line.option("--seconds T", timing.seconds, 0, 3600, "timed seconds, at least [2]");
  line.device_and_threads(device);
  line.example("margay bench train --threads 2", "all training rows");
  line.example("margay bench mixer/mamba-L1k mixer/mamba-L64k", "is the cost of a token the same?");
  line.example("margay bench train/cat-L64 op/linear-64x192 --json", "");
  if (!line.parse(arguments)) return 0;

  std::vector<BenchRow> rows = training_rows();
  for (auto more : {language_rows, mixer_rows, op_rows, large_rows}) {
    for (BenchRow& row : more()) rows.push_back(std::move(row));
  }
  const std::vector<const BenchRow*> chosen = selected(rows, names);
  Limits limits(device);
  auto results = nlohmann::ordered_json::array();
  if (!json && !list) {
    print_out(fmt::format("{:44} {:>9} {:>9}  {:>10}  {:12} {:>8}  threads: {}\n", "", "median ms", "min ms",
                          "peak RSS", "", "of limit", num_threads()));
  }
  for (const BenchRow* row : chosen) {
    if (list) {
      print_out(row->name + '\n');
      continue;
    }
    if (row->needs_bf16 && device.type == DeviceType::cpu && !cpu_has_bf16_products()) {
      print_error(fmt::format("{} is left out: this CPU has no instructions for products of bf16", row->name));
      continue;
    }
    const Result result = measure(*row, timing, device, limits);
    if (json) {
      results.push_back(as_json(result));
    } else {
      print_out(as_line(result));
    }
  }
  if (json) print_out(results.dump(2) + '\n');
  return 0;
}

}  // namespace

extern const Verb kBench;
constinit const Verb kBench = {"bench", "time training steps, mixers and single ops", run};

}  // namespace margay::cli
