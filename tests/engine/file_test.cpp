// Files: mapped for reading, and replaced atomically, with everything that can go wrong on the way.

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <stdexcept>
#include <string>

#include "engine/atomic_file.h"
#include "engine/error.h"
#include "engine/mapped_file.h"
#include "engine/npy.h"
#include "engine/safetensors.h"
#include "tests/support/temp_dir.h"

namespace margay::test {
namespace {

namespace fs = std::filesystem;

std::string content_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

int files_in(const std::string& folder) {
  return static_cast<int>(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

std::string folder_of(const TempDir& folder) { return fs::path(folder.file("x")).parent_path().string(); }

/// Lets no file grow beyond `bytes` while it lives.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limit = before_;
    limit.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() { setrlimit(RLIMIT_FSIZE, &before_); }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  rlimit before_{};
};

/// Whether `body` returns true in a process of its own, as a user who may write nowhere.
bool as_nobody(const std::function<bool()>& body) {
  const pid_t child = fork();
  if (child == 0) {
    const bool dropped = geteuid() != 0 || (setgid(65534) == 0 && setuid(65534) == 0);
    _exit(dropped && body() ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

template <class Error>
bool throws(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error&) {
    return true;
  } catch (...) {
  }
  return false;
}

}  // namespace

TEST_CASE("files are mapped for reading") {
  const TempDir folder;
  const std::string path = folder.write("x", "hello");
  MappedFile file(path);
  CHECK(std::string(file.bytes().begin(), file.bytes().end()) == "hello");
  const MappedFile moved = std::move(file);
  CHECK(moved.path() == path);
  CHECK(moved.bytes().size() == 5);
  MappedFile other(folder.write("y", "other"));
  other = MappedFile(path);
  CHECK(other.bytes()[0] == 'h');
}

TEST_CASE("what cannot be mapped is a DataError that names the path") {
  const TempDir folder;
  REQUIRE(mkfifo(folder.file("pipe").c_str(), 0600) == 0);
  folder.write("file", "x");
  const auto message = [](const std::string& path) {
    try {
      MappedFile file(path);
    } catch (const DataError& error) {
      return std::string(error.what());
    }
    return std::string("nothing was thrown");
  };
  const auto says = [&](const std::string& path, const std::string& part) {
    const std::string text = message(path);
    CAPTURE(text);
    CHECK(text.find(path) != std::string::npos);
    CHECK(text.find(part) != std::string::npos);
  };
  says(folder.file("missing"), "No such file");
  says(folder.file("file/below"), "Not a directory");
  says(folder.write("empty", ""), "is empty");
  says(folder_of(folder), "Is a directory");
  says(folder.file("pipe"), "not a regular file");
  says("/dev/null", "not a regular file");
  says("", "is not the path of a file");
  CHECK(message(std::string("a\0b", 3)).find("is not the path") != std::string::npos);
  CHECK(message(std::string(5000, 'x')).find("name too long") != std::string::npos);
  chmod(folder_of(folder).c_str(), 0755);
  const std::string secret = folder.write("secret", "x");
  chmod(secret.c_str(), 0);
  CHECK(as_nobody([&] { return message(secret).find("Permission denied") != std::string::npos; }));
}

TEST_CASE("a file is created or replaced, and nothing else is left in its folder") {
  const TempDir folder;
  const std::string path = folder.file("x");
  write_file_atomically(path, "one");
  CHECK(content_of(path) == "one");
  chmod(path.c_str(), 0640);
  write_file_atomically(path, [](FileWriter& writer) {
    writer.write("tw");
    writer.write(std::string(300000, 'o'));
    writer.write("!");
  });
  CHECK(content_of(path) == "tw" + std::string(300000, 'o') + "!");
  struct stat info {};
  REQUIRE(stat(path.c_str(), &info) == 0);
  CHECK((info.st_mode & 0777) == 0640);
  write_file_atomically(path, "");
  CHECK(content_of(path).empty());
  CHECK(files_in(folder_of(folder)) == 1);
  const std::string longest(255, 'n');
  write_file_atomically(folder.file(longest), "x");
  CHECK(content_of(folder.file(longest)) == "x");
}

TEST_CASE("a path without a folder is one in the working directory") {
  const TempDir folder;
  CHECK(as_nobody([&] {
    TempDir own;
    if (chdir(folder_of(own).c_str()) != 0) return false;
    write_file_atomically("x", "here");
    return content_of(own.file("x")) == "here";
  }));
}

TEST_CASE("whatever replaces a file goes on reading the old one") {
  const TempDir folder;
  const std::string path = folder.write("x", "old");
  const MappedFile old(path);
  write_file_atomically(path, "newer");
  CHECK(std::string(old.bytes().begin(), old.bytes().end()) == "old");
  CHECK(content_of(path) == "newer");
}

TEST_CASE("a symbolic link stays, and the file that it leads to is replaced") {
  const TempDir folder;
  const std::string target = folder.write("target", "old"), link = folder.file("link");
  REQUIRE(symlink("target", link.c_str()) == 0);
  write_file_atomically(link, "new");
  CHECK(fs::is_symlink(link));
  CHECK(content_of(target) == "new");
  fs::remove(target);
  CHECK_THROWS_AS(write_file_atomically(link, "new"), DataError);
  CHECK(files_in(folder_of(folder)) == 1);
}

TEST_CASE("an exception while the content is made leaves the old file and no other") {
  const TempDir folder;
  const std::string path = folder.write("x", "old");
  CHECK_THROWS_AS(write_file_atomically(path,
                                        [](FileWriter& writer) {
                                          writer.write(std::string(100000, 'n'));
                                          throw std::runtime_error("no more content");
                                        }),
                  std::runtime_error);
  CHECK(content_of(path) == "old");
  CHECK(files_in(folder_of(folder)) == 1);
}

TEST_CASE("a path that cannot be written is a DataError") {
  const TempDir folder;
  folder.write("file", "x");
  for (const std::string& path :
       {folder.file("missing/x"), folder.file("file/x"), folder_of(folder), std::string(), std::string("a\0b", 3),
        folder.file(std::string(256, 'n')), std::string("/proc/self/x"), std::string("/sys/x")}) {
    CAPTURE(path);
    CHECK_THROWS_AS(write_file_atomically(path, "x"), DataError);
  }
  CHECK(files_in(folder_of(folder)) == 1);
  chmod(folder_of(folder).c_str(), 0555);
  CHECK(as_nobody([&] {
    return throws<DataError>([&] { write_file_atomically(folder.file("new"), "x"); }) &&
           throws<DataError>([&] { write_file_atomically(folder.file("file"), "y"); });
  }));
  CHECK(content_of(folder.file("file")) == "x");
  chmod(folder_of(folder).c_str(), 0755);
}

TEST_CASE("a full disk is a ResourceError") {
  REQUIRE(fs::is_character_file("/dev/full"));
  CHECK_THROWS_AS(write_file_atomically("/dev/full", "x"), ResourceError);
  CHECK_THROWS_AS(save_npy("/dev/full", zeros({3})), ResourceError);
  const std::vector<NamedTensor> tensors = {{"a", zeros({100000})}};
  CHECK_THROWS_AS(save_safetensors("/dev/full", tensors), ResourceError);
  CHECK(fs::is_character_file("/dev/full"));
  CHECK_NOTHROW(write_file_atomically("/dev/null", "x"));
  CHECK(fs::is_character_file("/dev/null"));
}

TEST_CASE("a file that may not grow further is a ResourceError at every length, and no signal") {
  const TempDir folder;
  const std::string path = folder.write("x", "old");
  const std::vector<NamedTensor> tensors = {{"a", full({30000}, 2)}, {"b", ones({7})}};
  const std::string whole = folder.file("whole");
  save_safetensors(whole, tensors);
  const auto size = fs::file_size(whole);
  for (rlim_t limit = 0; limit < size; limit = limit < 300 ? limit + 37 : limit * 2) {
    CAPTURE(limit);
    {
      const FileSizeLimit no_more(limit);
      CHECK_THROWS_AS(save_safetensors(path, tensors), ResourceError);
    }
    CHECK(content_of(path) == "old");
    CHECK(files_in(folder_of(folder)) == 2);
  }
  sigset_t pending;
  sigpending(&pending);
  CHECK(sigismember(&pending, SIGXFSZ) == 0);
  const FileSizeLimit enough(size);
  CHECK_NOTHROW(save_safetensors(path, tensors));
  CHECK(content_of(path) == content_of(whole));
}

TEST_CASE("a pipe whose reader has gone is an error and no signal") {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  close(ends[0]);
  const Descriptor writer(ends[1]);
  CHECK_THROWS_AS(write_all(writer, "pipe", "x", 1), DataError);
  sigset_t pending;
  sigpending(&pending);
  CHECK(sigismember(&pending, SIGPIPE) == 0);
}

}  // namespace margay::test
