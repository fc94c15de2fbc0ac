#include "tools/margay/progress.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/device.h"
#include "engine/parallel.h"
#include "tools/margay/signals.h"
#include "tools/margay/terminal.h"
#include "tools/margay/text.h"

namespace margay::cli {
namespace {

constexpr std::chrono::milliseconds kLiveInterval{100};
constexpr std::chrono::seconds kPlainInterval{10};
constexpr size_t kBarWidth = 24;
constexpr const char *kClearLine = "\r\x1b[2K", *kColour = "\x1b[36m", *kDim = "\x1b[2m", *kReset = "\x1b[0m";

}  // namespace

Progress::Progress(std::string name, std::string folder, bool quiet)
    : name_(std::move(name)),
      folder_(std::move(folder)),
      quiet_(quiet),
      live_(output_is_terminal()),
      colour_(output_has_colour()),
      unicode_(locale_is_utf8()) {}

Progress::~Progress() {
  try {
    if (drawn_) print("\n");
  } catch (...) {  // an error is on its way already
  }
}

void Progress::on_start(const Trainer& trainer) {
  state_ = trainer.state();
  const Config& config = trainer.config();
  const int64_t layers = config.model.n_layers;
  print(fmt::format("{}: {} layer{} of {}, {} parameters, on {}, threads: {}, into {}\n", name_, layers,
                    layers == 1 ? "" : "s", fmt::join(config.model.mixer, ", "),
                    with_commas(trainer.model().parameter_count()), to_string(trainer.model().device()), num_threads(),
                    folder_));
  if (state_.step > 0) print(fmt::format("going on from step {}\n", with_commas(state_.step)));
  start_ = last_ = Clock::now();
  first_step_ = state_.step;
}

void Progress::on_step(const Trainer& trainer, const Metrics& metrics) {
  state_ = trainer.state();
  if (quiet_ || !due(trainer, metrics)) return;
  if (live_) {
    print(kClearLine + live_line(trainer, metrics));
    drawn_ = true;
  } else {
    print(plain_line(trainer, metrics) + '\n');
  }
}

bool Progress::due(const Trainer& trainer, const Metrics& metrics) {
  const Clock::time_point now = Clock::now();
  const bool event = metrics.accuracy || trainer.finished();
  if (!event && now - last_ < (live_ ? Clock::duration(kLiveInterval) : Clock::duration(kPlainInterval))) return false;
  last_ = now;
  return true;
}

bool Progress::stop_requested() { return stop_signal() != 0; }

double Progress::seconds_left(const Trainer& trainer) const {
  const double passed = std::chrono::duration<double>(Clock::now() - start_).count();
  const auto done = static_cast<double>(state_.step - first_step_);
  return passed / done * static_cast<double>(trainer.total_steps() - state_.step);
}

std::string Progress::measures(const Trainer& trainer, const Metrics& metrics) const {
  const std::string accuracy = state_.test ? fmt::format("  accuracy {}", percent(state_.test->accuracy)) : "";
  return fmt::format("loss {:.4f}{}  {} tokens/s  ETA {}", metrics.loss, accuracy,
                     short_count(static_cast<double>(state_.tokens) / state_.train_seconds),
                     duration(seconds_left(trainer)));
}

std::string Progress::bar(double share) const {
  const auto full = static_cast<size_t>(share * static_cast<double>(kBarWidth));
  std::string done, left;
  for (size_t i = 0; i < kBarWidth; ++i) (i < full ? done : left) += unicode_ ? "━" : i < full ? "#" : "-";
  if (unicode_ && !colour_) {
    left.clear();
    for (size_t i = full; i < kBarWidth; ++i) left += "┄";
  }
  return colour_ ? kColour + done + kReset + kDim + left + kReset : done + left;
}

std::string Progress::live_line(const Trainer& trainer, const Metrics& metrics) const {
  const double share = static_cast<double>(metrics.step) / static_cast<double>(trainer.total_steps());
  const std::string name = name_ + ' ';
  const std::string rest = fmt::format(" {:3.0f} %  {}/{}  {}", 100 * share, metrics.step, trainer.total_steps(),
                                       measures(trainer, metrics));
  const size_t columns = output_columns();
  if (text_width(name) + kBarWidth + text_width(rest) < columns) return name + bar(share) + rest;
  return rest.substr(1, columns > 1 ? columns - 1 : 0);  // ASCII alone
}

std::string Progress::plain_line(const Trainer& trainer, const Metrics& metrics) const {
  return fmt::format("step {}/{}  {}", metrics.step, trainer.total_steps(), measures(trainer, metrics));
}

void Progress::finish(const std::string& line) {
  if (drawn_) print("\n");
  drawn_ = false;
  print(line + '\n');
}

void Progress::print(const std::string& text) {
  if (quiet_) return;
  try {
    print_out(text);
  } catch (const OutputClosed&) {
    quiet_ = true;  // nobody reads: training goes on
  }
}

}  // namespace margay::cli
