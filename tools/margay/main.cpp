#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <exception>
#include <filesystem>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/error.h"
#include "engine/names.h"
#include "tools/margay/terminal.h"
#include "tools/margay/text.h"
#include "tools/margay/verbs.h"
#include "tools/margay/version.h"

namespace margay::cli {

extern const Verb kTrain, kEval, kInit, kGen, kForward, kBackward, kSample, kStudy, kPlot, kList, kInfo, kGraph, kBench,
    kImport, kExport, kTokenizer, kPrepare;

namespace {

constexpr std::array kVerbs = {&kTrain,    &kEval,   &kSample, &kStudy,     &kPlot,   &kInfo,
                               &kList,     &kGraph,  &kBench,  &kInit,      &kGen,    &kForward,
                               &kBackward, &kImport, &kExport, &kTokenizer, &kPrepare};

/// Exit codes, as the README lists them.
enum Code { kDone = 0, kInternalError = 1, kUsage = 2, kBadData = 3, kDiverged = 4, kNoResources = 5 };

std::string help() {
  std::string text =
      "Margay: attention, convolution-augmented transformers and their rivals, trained on recall tasks and text.\n\n"
      "Usage: margay VERB ...\n\n";
  std::vector<std::vector<std::string>> rows;
  for (const Verb* verb : kVerbs) rows.push_back({"  " + std::string(verb->name), std::string(verb->summary)});
  return text + table(rows) +
         "\n`margay VERB --help` explains a verb, with examples. To begin with:\n\n"
         "  margay list presets\n"
         "  margay train mqar-64-cat\n";
}

const Verb& find_verb(const std::string& name) {
  std::vector<std::string_view> names{"help"};
  for (const Verb* verb : kVerbs) {
    if (verb->name == name) return *verb;
    names.push_back(verb->name);
  }
  throw ConfigError(
      fmt::format("unknown verb {}; the nearest is \"{}\"", margay::quoted(name), nearest_name(name, names)));
}

int dispatch(Arguments arguments) {
  if (arguments.empty()) throw ConfigError("a verb is missing; `margay --help` lists them");
  std::string verb = arguments.front();
  arguments.erase(arguments.begin());
  if (verb == "--version") {
    print_out(std::string(kVersion) + '\n');
    return kDone;
  }
  if (verb == "help" && !arguments.empty()) {
    verb = arguments.front();
    arguments = {"--help"};
  }
  if (verb == "help" || verb == "--help" || verb == "-h") {
    print_out(help());
    return kDone;
  }
  return find_verb(verb).run(arguments);
}

/// The exit code of the exception that is being handled, and its message. All errors end here.
int code_of_current_exception(std::string& message) {
  try {
    throw;
  } catch (const OutputClosed&) {
    return kDone;
  } catch (const DataError& error) {
    message = error.what();
    return kBadData;
  } catch (const DivergedError& error) {
    message = error.what();
    return kDiverged;
  } catch (const ResourceError& error) {
    message = error.what();
    return kNoResources;
  } catch (const Error& error) {  // ConfigError, DeviceError, and OpError: sizes that do not fit
    message = error.what();
    return kUsage;
  } catch (const std::bad_alloc&) {
    message = "out of memory";
    return kNoResources;
  } catch (const std::length_error&) {  // more elements than a container can have
    message = "out of memory";
    return kNoResources;
  } catch (const std::filesystem::filesystem_error& error) {
    message = error.what();
    return kBadData;
  } catch (const std::overflow_error& error) {  // of a product of sizes
    message = error.what();
    return kUsage;
  } catch (const std::exception& error) {
    message = fmt::format("internal error: {}", error.what());
    return kInternalError;
  }
}

/// "margay VERB: message" in one line; without the verb where there is none of that name.
std::string error_line(const Arguments& arguments, std::string message) {
  for (char& c : message) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  const bool known = !arguments.empty() && std::any_of(kVerbs.begin(), kVerbs.end(), [&](const Verb* verb) {
    return verb->name == arguments.front();
  });
  return fmt::format("margay{}: {}", known ? ' ' + arguments.front() : "", message);
}

int run(const Arguments& arguments) {
  try {
    return dispatch(arguments);
  } catch (...) {
    std::string message;
    const int code = code_of_current_exception(message);
    if (!message.empty()) print_error(error_line(arguments, message));
    return code;
  }
}

}  // namespace
}  // namespace margay::cli

int main(int argc, char** argv) {
  margay::cli::prepare_standard_streams();
  return margay::cli::run({argv + std::min(1, argc), argv + argc});
}
