#pragma once
#include <sys/types.h>

#include <chrono>
#include <string>
#include <utility>
#include <vector>

namespace margay::test {

/// How a process ended, and what it wrote.
struct Ended {
  int code = 0;  ///< exit code, or 128 + the signal that ended it
  std::string out, error;
};

/// A run of the margay command.
class Command {
 public:
  struct Options {
    std::string folder = ".";  ///< working directory
    std::vector<std::pair<std::string, std::string>> environment = {};
    long file_size_limit = -1;  ///< RLIMIT_FSIZE in bytes; negative = none
    bool close_output = false;  ///< starts without a standard output
    bool break_pipe = false;    ///< nobody reads standard output
    bool terminal = false;      ///< standard output is a terminal
    std::string input = "/dev/null";
  };

  explicit Command(const std::vector<std::string>& arguments) : Command(arguments, Options{}) {}
  Command(const std::vector<std::string>& arguments, const Options& options);
  ~Command();
  Command(const Command&) = delete;
  Command& operator=(const Command&) = delete;

  void signal(int number) const;
  /// Waits until standard output holds `text`; false if the process ends or a minute passes before.
  bool wait_for_output(const std::string& text);
  /// Waits until the process handles a signal itself; false if it ends or a minute passes before.
  bool wait_for_handler(int number);
  /// Reads to the end and waits for the process.
  Ended wait();

 private:
  bool read_some(std::chrono::milliseconds timeout);

  pid_t pid_ = -1;
  int out_ = -1, error_ = -1;
  Ended ended_;
};

/// Runs the command to its end.
Ended run_margay(const std::vector<std::string>& arguments, const Command::Options& options = {});

}  // namespace margay::test
