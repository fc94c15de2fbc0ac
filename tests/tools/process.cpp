#include "tests/tools/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string_view>

namespace margay::test {
namespace {

/// Moves what is there from a pipe to the text; closes the pipe at its end.
void drain(int& pipe, std::string& text) {
  std::array<char, 4096> buffer;
  const ssize_t count = ::read(pipe, buffer.data(), buffer.size());
  if (count > 0) {
    text.append(buffer.data(), static_cast<size_t>(count));
  } else if (count == 0 || errno != EINTR) {
    ::close(pipe);
    pipe = -1;
  }
}

/// In the child: never returns.
[[noreturn]] void execute(const std::vector<std::string>& arguments, const Command::Options& options, int out,
                          int error) {
  for (const auto& [name, value] : options.environment) ::setenv(name.c_str(), value.c_str(), 1);
  if (options.file_size_limit >= 0) {
    const auto bytes = static_cast<rlim_t>(options.file_size_limit);
    const rlimit limit{bytes, bytes};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  std::vector<char*> argv{const_cast<char*>(MARGAY_COMMAND)};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const int input = ::open(options.input.c_str(), O_RDONLY);
  ::dup2(input, STDIN_FILENO);
  ::dup2(error, STDERR_FILENO);
  if (options.close_output) {
    ::close(STDOUT_FILENO);
  } else {
    ::dup2(out, STDOUT_FILENO);
  }
  if (::chdir(options.folder.c_str()) == 0) ::execv(MARGAY_COMMAND, argv.data());
  ::_exit(127);
}

/// The two ends of a terminal, as of a pipe.
std::array<int, 2> open_terminal() {
  const int screen = ::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (screen < 0 || ::grantpt(screen) != 0 || ::unlockpt(screen) != 0) throw std::runtime_error("terminal");
  return {screen, ::open(::ptsname(screen), O_RDWR | O_NOCTTY | O_CLOEXEC)};
}

}  // namespace

Command::Command(const std::vector<std::string>& arguments, const Options& options) {
  std::array<int, 2> out, error;
  if (::pipe2(out.data(), O_CLOEXEC) != 0 || ::pipe2(error.data(), O_CLOEXEC) != 0) throw std::runtime_error("pipe");
  if (options.terminal) {
    for (const int end : out) ::close(end);
    out = open_terminal();
  }
  if (options.break_pipe) ::close(out[0]);
  pid_ = ::fork();
  if (pid_ < 0) throw std::runtime_error("fork");
  if (pid_ == 0) execute(arguments, options, out[1], error[1]);
  ::close(out[1]);
  ::close(error[1]);
  out_ = options.break_pipe ? -1 : out[0];
  error_ = error[0];
}

Command::~Command() {
  if (pid_ < 0) return;
  signal(SIGKILL);
  wait();
}

void Command::signal(int number) const { ::kill(pid_, number); }

bool Command::read_some(std::chrono::milliseconds timeout) {
  std::array<pollfd, 2> files = {{{out_, POLLIN, 0}, {error_, POLLIN, 0}}};
  if (::poll(files.data(), files.size(), static_cast<int>(timeout.count())) < 0) return errno == EINTR;
  if (files[0].revents) drain(out_, ended_.out);
  if (files[1].revents) drain(error_, ended_.error);
  return out_ >= 0 || error_ >= 0;
}

bool Command::wait_for_output(const std::string& text) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point deadline = Clock::now() + std::chrono::minutes(1);
  while (ended_.out.find(text) == std::string::npos) {
    if (Clock::now() > deadline || !read_some(std::chrono::milliseconds(100))) return false;
  }
  return true;
}

// Between fork and exec the process still has the handlers of the tests: two looks are 10 ms apart.
bool Command::wait_for_handler(int number) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point deadline = Clock::now() + std::chrono::minutes(1);
  const std::string folder = "/proc/" + std::to_string(pid_);
  constexpr std::string_view kCaught = "SigCgt:";  // a mask in hexadecimal
  int seen = 0;
  do {
    std::error_code gone;
    const bool started = std::filesystem::equivalent(folder + "/exe", MARGAY_COMMAND, gone);
    std::ifstream status(folder + "/status");
    for (std::string line; started && std::getline(status, line);) {
      if (line.starts_with(kCaught) && (std::stoull(line.substr(kCaught.size()), nullptr, 16) >> (number - 1) & 1) != 0)
        ++seen;
    }
  } while (seen < 2 && Clock::now() < deadline && read_some(std::chrono::milliseconds(10)));
  return seen == 2;
}

Ended Command::wait() {
  while (read_some(std::chrono::milliseconds(100))) {
  }
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  ended_.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return ended_;
}

Ended run_margay(const std::vector<std::string>& arguments, const Command::Options& options) {
  return Command(arguments, options).wait();
}

}  // namespace margay::test
