#include "tasks/train/compressors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "engine/error.h"
#include "engine/file.h"

extern char** environ;

namespace margay {
namespace {

/// The environment, without what would add options of the user's to the compressors'.
std::vector<char*> plain_environment() {
  constexpr std::array<std::string_view, 5> options = {"GZIP=", "BZIP=", "BZIP2=", "XZ_OPT=", "XZ_DEFAULTS="};
  std::vector<char*> environment;
  for (char** entry = environ; *entry; ++entry) {
    const auto sets = [&](std::string_view option) { return std::string_view(*entry).starts_with(option); };
    if (std::none_of(options.begin(), options.end(), sets)) environment.push_back(*entry);
  }
  environment.push_back(nullptr);
  return environment;
}

/// How a child process starts: where its standard streams go, and with the usual end by SIGPIPE.
class SpawnPlan {
 public:
  SpawnPlan(int input, int output) {
    ::posix_spawn_file_actions_init(&actions_);
    ::posix_spawnattr_init(&attributes_);
    ::posix_spawn_file_actions_adddup2(&actions_, input, STDIN_FILENO);
    ::posix_spawn_file_actions_adddup2(&actions_, output, STDOUT_FILENO);
    ::posix_spawn_file_actions_addopen(&actions_, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    sigset_t pipe;
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    ::posix_spawnattr_setsigdefault(&attributes_, &pipe);
    ::posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETSIGDEF);
  }
  ~SpawnPlan() {
    ::posix_spawn_file_actions_destroy(&actions_);
    ::posix_spawnattr_destroy(&attributes_);
  }
  SpawnPlan(const SpawnPlan&) = delete;
  SpawnPlan& operator=(const SpawnPlan&) = delete;

  /// 0 or an error number.
  int start(const std::vector<std::string>& command, pid_t& pid) const {
    std::vector<char*> words;
    for (const std::string& word : command) words.push_back(const_cast<char*>(word.c_str()));
    words.push_back(nullptr);
    return ::posix_spawnp(&pid, words[0], &actions_, &attributes_, words.data(), plain_environment().data());
  }

 private:
  posix_spawn_file_actions_t actions_;
  posix_spawnattr_t attributes_;
};

void close_once(int& file) {
  if (file >= 0) ::close(file);
  file = -1;
}

}  // namespace

const std::vector<Compressor>& compressors() {
  static const std::vector<Compressor> all = {
      {"gzip -9", {"gzip", "-9", "-c"}}, {"bzip2 -9", {"bzip2", "-9", "-c"}}, {"xz -9e", {"xz", "-9e", "-T1", "-c"}}};
  return all;
}

std::unique_ptr<Compression> Compression::start(const Compressor& compressor) {
  // A socket: writing to one that nobody reads is an error here and no signal of the process.
  std::array<int, 2> in, out;
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, in.data()) != 0)
    throw_file_error(compressor.name, "cannot be started", errno);
  const Descriptor child_in(in[1]);
  std::unique_ptr<Compression> compression(new Compression(compressor.name, in[0]));
  if (::pipe2(out.data(), O_CLOEXEC) != 0) throw_file_error(compressor.name, "cannot be started", errno);
  const Descriptor child_out(out[1]);
  compression->output_ = out[0];
  pid_t pid = -1;
  const int error = SpawnPlan(in[1], out[1]).start(compressor.command, pid);
  if (error == ENOENT) return nullptr;
  if (error != 0) throw_file_error(compressor.name, "cannot be started", error);
  compression->pid_ = pid;
  return compression;
}

Compression::~Compression() {
  close_once(input_);
  close_once(output_);
  if (pid_ >= 0) wait();
}

// Reads what has come out: all there is, or all there will be.
void Compression::drain(bool to_the_end) {
  std::array<char, 1 << 16> buffer;
  while (output_ >= 0) {
    pollfd ready{output_, POLLIN, 0};
    if (!to_the_end && ::poll(&ready, 1, 0) == 0) return;
    const ssize_t count = ::read(output_, buffer.data(), buffer.size());
    if (count > 0) bytes_ += count;
    if (count == 0) close_once(output_);
    if (count < 0 && errno != EINTR) throw_file_error(name_, "cannot be read", errno);
  }
}

void Compression::feed(std::string_view bytes) {
  while (!bytes.empty()) {
    std::array<pollfd, 2> ready = {{{input_, POLLOUT, 0}, {output_, POLLIN, 0}}};
    if (::poll(ready.data(), ready.size(), -1) < 0 && errno != EINTR) throw_file_error(name_, "cannot be fed", errno);
    drain(false);
    const ssize_t sent = ::send(input_, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0) bytes.remove_prefix(static_cast<size_t>(sent));
    if (sent < 0 && errno != EINTR && errno != EAGAIN && errno != EWOULDBLOCK)
      throw_file_error(name_, "ended before its input", errno);
  }
}

int64_t Compression::finish() {
  close_once(input_);
  drain(true);
  const int status = wait();
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    throw DataError(WIFEXITED(status) ? fmt::format("{} failed with exit status {}", name_, WEXITSTATUS(status))
                                      : fmt::format("{} was ended by signal {}", name_, WTERMSIG(status)));
  }
  return bytes_;
}

int Compression::wait() {
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  return status;
}

CompressedSize compressed_size(const Compressor& compressor, const TextSource& held_out, const TextSource& training) {
  const auto size_of = [&](const std::vector<const TextSource*>& texts) -> std::optional<int64_t> {
    const auto compression = Compression::start(compressor);
    if (!compression) return std::nullopt;
    for (const TextSource* text : texts) (*text)([&](std::string_view bytes) { compression->feed(bytes); });
    return compression->finish();
  };
  CompressedSize size{size_of({&held_out}), std::nullopt};
  if (!size.alone || !training) return size;
  const auto before = size_of({&training}), both = size_of({&training, &held_out});
  if (before && both) size.given = *both - *before;
  return size;
}

}  // namespace margay
