#include "tools/margay/command_line.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>

#include "engine/device.h"
#include "engine/error.h"
#include "engine/names.h"
#include "engine/parallel.h"
#include "tools/margay/terminal.h"

namespace margay::cli {
namespace {

constexpr int64_t kMostThreads = 1024;
constexpr size_t kHelpColumn = 22;

template <class Number>
bool parse_number(const std::string& text, Number& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

std::string help_line(const std::string& name, const std::string& help) {
  const std::string gap = name.size() + 2 < kHelpColumn ? std::string(kHelpColumn - name.size() - 2, ' ')
                                                        : '\n' + std::string(kHelpColumn, ' ');
  return fmt::format("  {}{}{}\n", name, gap, help);
}

}  // namespace

CommandLine::CommandLine(std::string verb, std::string summary)
    : verb_(std::move(verb)), summary_(std::move(summary)) {}

void CommandLine::argument(const std::string& name, std::string& value, const std::string& help) {
  arguments_.push_back({.name = name, .help = help, .set = [&value](const std::string& word) { value = word; }});
}

void CommandLine::arguments(const std::string& name, std::vector<std::string>& values, const std::string& help,
                            size_t least) {
  rest_ = {name, help, &values, least};
}

void CommandLine::add_option(const std::string& name, const std::string& help, bool required,
                             std::function<void(const std::string&)> set) {
  const size_t space = name.find(' ');
  options_.push_back({.name = name.substr(0, space),
                      .operand = space == std::string::npos ? "" : name.substr(space + 1),
                      .help = help,
                      .set = std::move(set),
                      .required = required});
}

void CommandLine::option(const std::string& name, std::string& value, const std::string& help, bool required) {
  add_option(name, help, required, [&value](const std::string& text) { value = text; });
}

void CommandLine::option(const std::string& name, std::optional<std::string>& value, const std::string& help) {
  add_option(name, help, false, [&value](const std::string& text) { value = text; });
}

void CommandLine::option(const std::string& name, std::vector<std::string>& values, const std::string& help) {
  add_option(name, help, false, [&values](const std::string& text) { values.push_back(text); });
  options_.back().repeated = true;
}

void CommandLine::option(const std::string& name, int64_t& value, int64_t least, const std::string& help,
                         bool required) {
  add_option(name, help, required, [&value, least, name](const std::string& text) {
    if (!parse_number(text, value) || value < least) {
      throw ConfigError(fmt::format("{} must be an integer of at least {}, got {}", name.substr(0, name.find(' ')),
                                    least, margay::quoted(text)));
    }
  });
}

void CommandLine::option(const std::string& name, double& value, double least, double most, const std::string& help) {
  add_option(name, help, false, [&value, least, most, name](const std::string& text) {
    if (!parse_number(text, value) || !(value >= least && value <= most)) {
      const std::string range =
          std::isfinite(most) ? fmt::format("from {} to {}", least, most) : fmt::format("of at least {}", least);
      throw ConfigError(
          fmt::format("{} must be a number {}, got {}", name.substr(0, name.find(' ')), range, margay::quoted(text)));
    }
  });
}

void CommandLine::flag(const std::string& name, bool& value, const std::string& help) {
  add_option(name, help, false, [&value](const std::string&) { value = true; });
}

void CommandLine::seed(std::function<void(int64_t)> set, const std::string& help) {
  add_option("--seed N", help, false, [set = std::move(set)](const std::string& text) {
    int64_t seed = 0;
    uint64_t large = 0;
    if (!parse_number(text, seed)) {
      if (!parse_number(text, large)) {
        throw ConfigError(fmt::format("--seed must be a 64-bit integer, got {}", margay::quoted(text)));
      }
      seed = static_cast<int64_t>(large);
    }
    set(seed);
  });
}

void CommandLine::threads() {
  add_option("--threads N", "CPU threads; may exceed the cores [all cores]", false, [](const std::string& text) {
    int64_t threads = 0;
    if (!parse_number(text, threads) || threads < 1 || threads > kMostThreads) {
      throw ConfigError(
          fmt::format("--threads must be an integer from 1 to {}, got {}", kMostThreads, margay::quoted(text)));
    }
    set_num_threads(static_cast<int>(threads));
  });
}

void CommandLine::device_and_threads(Device& device) {
  add_option("--device NAME", "cpu, cuda, cuda:N or auto (a GPU if there is one) [cpu]", false,
             [&device](const std::string& text) { device = parse_device(text); });
  threads();
}

void CommandLine::example(const std::string& command, const std::string& help) {
  examples_.emplace_back(command, help);
}

bool CommandLine::parse(const Arguments& arguments) const {
  CLI::App app;
  app.set_help_flag("-h,--help");
  app.allow_extras();  // arguments by position are what is left over
  std::string one;
  std::vector<std::string> several;  // where CLI11 converts values to; they are taken from its results, as they came
  std::vector<CLI::Option*> parsed;
  for (const Entry& option : options_) {
    if (option.operand.empty()) {
      parsed.push_back(app.add_flag(option.name));
    } else {
      parsed.push_back(option.repeated ? app.add_option(option.name, several) : app.add_option(option.name, one));
      parsed.back()->allow_extra_args(false);
    }
  }
  try {
    app.parse(Arguments(arguments.rbegin(), arguments.rend()));
  } catch (const CLI::CallForHelp&) {
    print_out(help());
    return false;
  } catch (const CLI::ParseError& error) {
    const std::string message = error.what(), option = message.substr(0, message.find(':'));
    throw ConfigError(option.starts_with("--") ? option + " takes one value, once" : message);
  }
  std::vector<std::string> words;
  bool options_end = false;  // "--": what follows are words, whatever they look like
  for (const std::string& word : app.remaining()) {
    if (!options_end && word.starts_with('-') && word != "--") fail_unknown(word);
    if (options_end || word != "--") words.push_back(word);
    options_end = options_end || word == "--";
  }
  set_arguments(words);
  for (size_t i = 0; i < options_.size(); ++i) {
    if (parsed[i]->count() > 0) {
      for (const std::string& value : parsed[i]->results()) options_[i].set(value);
    } else if (options_[i].required) {
      throw ConfigError(fmt::format("{} {} is missing; usage: {}", options_[i].name, options_[i].operand, usage()));
    }
  }
  return true;
}

void CommandLine::set_arguments(const std::vector<std::string>& words) const {
  const size_t single = arguments_.size();
  for (size_t i = 0; i < single; ++i) {
    if (i >= words.size()) throw ConfigError(fmt::format("{} is missing; usage: {}", arguments_[i].name, usage()));
    arguments_[i].set(words[i]);
  }
  const std::vector<std::string> rest(words.begin() + static_cast<std::ptrdiff_t>(single), words.end());
  if (rest_) {
    if (rest.size() < rest_->least) throw ConfigError(fmt::format("{} is missing; usage: {}", rest_->name, usage()));
    *rest_->values = rest;
  } else if (!rest.empty()) {
    throw ConfigError(fmt::format("one argument too many: {}; usage: {}", margay::quoted(rest.front()), usage()));
  }
}

void CommandLine::fail_unknown(const std::string& word) const {
  std::vector<std::string_view> names{"--help"};
  for (const Entry& option : options_) names.push_back(option.name);
  const std::string name = word.substr(0, word.find('='));
  throw ConfigError(
      fmt::format("unknown option {}; the nearest is {}", margay::quoted(name), nearest_name(name, names)));
}

std::string CommandLine::usage() const {
  std::string usage = "margay " + verb_;
  for (const Entry& argument : arguments_) usage += ' ' + argument.name;
  if (rest_) usage += rest_->least > 0 ? fmt::format(" {} ...", rest_->name) : fmt::format(" [{} ...]", rest_->name);
  for (const Entry& option : options_) {
    if (option.required) usage += fmt::format(" {} {}", option.name, option.operand);
  }
  return usage + " [options]";
}

std::string CommandLine::help() const {
  std::string help = fmt::format("{}\n\nUsage: {}\n", summary_, usage());
  if (!arguments_.empty() || rest_) help += "\nArguments\n";
  for (const Entry& argument : arguments_) help += help_line(argument.name, argument.help);
  if (rest_) help += help_line(rest_->name, rest_->help);
  help += "\nOptions\n";
  for (const Entry& option : options_) {
    help += help_line(option.operand.empty() ? option.name : option.name + ' ' + option.operand, option.help);
  }
  help += help_line("-h, --help", "this text");
  if (!examples_.empty()) help += "\nExamples\n";
  for (const auto& [command, meaning] : examples_) {
    help += fmt::format("  {}\n", command);
    if (!meaning.empty()) help += fmt::format("      {}\n", meaning);
  }
  return help;
}

}  // namespace margay::cli
