#include "tasks/train/metrics.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>

#include "engine/error.h"
#include "engine/mapped_file.h"

namespace margay {
namespace {

using Json = nlohmann::ordered_json;

Json optional_number(const std::optional<double>& value) { return value ? Json(*value) : Json(); }

/// A number of the line. A training loss is always finite, so null stands for none.
template <class T>
T number(const Json& line, const char* key) {
  const auto found = line.find(key);
  if (found == line.end() || !found->is_number()) throw DataError(fmt::format("\"{}\" must be a number", key));
  return found->get<T>();
}

std::optional<double> number_or_null(const Json& line, const char* key) {
  const auto found = line.find(key);
  if (found == line.end() || found->is_null()) return std::nullopt;
  return number<double>(line, key);
}

/// The lines of a file and where in it each ends; an unfinished last line is left out.
struct Lines {
  std::vector<Metrics> metrics;
  std::vector<size_t> ends;
};

Lines read_lines(const std::string& path) {
  std::error_code error;
  if (std::filesystem::file_size(path, error) == 0 && !error) return {};
  const MappedFile file(path);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  Lines lines;
  for (size_t begin = 0, end = text.find('\n'); end != text.npos; begin = end + 1, end = text.find('\n', begin)) {
    try {
      lines.metrics.push_back(metrics_from_json(text.substr(begin, end - begin)));
    } catch (const DataError& error) {
      throw DataError(fmt::format("{}:{}: {}", quoted_path(path), lines.metrics.size() + 1, error.what()));
    }
    lines.ends.push_back(end + 1);
  }
  return lines;
}

}  // namespace

std::string to_json(const Metrics& metrics) {
  return Json{{"step", metrics.step},
              {"epoch", metrics.epoch},
              {"tokens", metrics.tokens},
              {"loss", metrics.loss},
              {"train_accuracy", metrics.train_accuracy},
              {"test_loss", optional_number(metrics.test_loss)},
              {"accuracy", optional_number(metrics.accuracy)},
              {"lr", metrics.lr},
              {"grad_norm", metrics.grad_norm},
              {"tokens_per_second", metrics.tokens_per_second},
              {"seconds", metrics.seconds},
              {"peak_bytes", metrics.peak_bytes}}
      .dump();
}

Metrics metrics_from_json(std::string_view line) {
  const Json json = Json::parse(line, nullptr, false);
  if (!json.is_object()) throw DataError("must be a JSON object");
  Metrics metrics;
  metrics.step = number<int64_t>(json, "step");
  metrics.epoch = number<int64_t>(json, "epoch");
  metrics.tokens = number<int64_t>(json, "tokens");
  metrics.loss = number<double>(json, "loss");
  metrics.train_accuracy = number<double>(json, "train_accuracy");
  metrics.test_loss = number_or_null(json, "test_loss");
  metrics.accuracy = number_or_null(json, "accuracy");
  metrics.lr = number<double>(json, "lr");
  metrics.grad_norm = number<double>(json, "grad_norm");
  metrics.tokens_per_second = number<double>(json, "tokens_per_second");
  metrics.seconds = number<double>(json, "seconds");
  metrics.peak_bytes = number<int64_t>(json, "peak_bytes");
  return metrics;
}

std::vector<Metrics> read_metrics(const std::string& path) { return read_lines(path).metrics; }

MetricsLog::MetricsLog(const std::string& path, int64_t last_step)
    : path_(path), file_(::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666)) {
  if (!file_.valid()) throw_file_error(path, "cannot be written", errno);
  struct stat info {};
  if (::fstat(file_.number(), &info) != 0) throw_file_error(path, "cannot be read", errno);
  if (!S_ISREG(info.st_mode) || info.st_size == 0) return;
  const Lines lines = read_lines(path);
  size_t kept = 0;
  for (size_t i = 0; i < lines.ends.size() && lines.metrics[i].step <= last_step; ++i) kept = lines.ends[i];
  if (::ftruncate(file_.number(), static_cast<off_t>(kept)) != 0) throw_file_error(path, "cannot be cut", errno);
}

void MetricsLog::append(const Metrics& metrics) {
  const std::string line = to_json(metrics) + '\n';
  write_all(file_, path_, line.data(), line.size());
}

void MetricsLog::sync() { sync_file(file_, path_); }

}  // namespace margay
