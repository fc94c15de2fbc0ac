#pragma once
#include <stdexcept>
#include <string>
#include <string_view>

namespace margay {

/// Base of every error the library throws for a reason that lies outside of it.
/// Broken invariants of the library itself throw std::logic_error instead.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// An op was called with an argument it cannot take. `what()` reads "op: argument must be X, got Y".
class OpError : public Error {
 public:
  OpError(std::string_view op, std::string_view arg, std::string_view wanted, std::string_view got);
  const std::string& op() const noexcept { return op_; }
  const std::string& arg() const noexcept { return arg_; }

 private:
  std::string op_, arg_;
};

/// A setting, key, name or combination of sizes that cannot be used.
class ConfigError : public Error {
 public:
  using Error::Error;
};

/// A file or data set is missing, damaged or does not hold what it should.
class DataError : public Error {
 public:
  using Error::Error;
};

/// A loss, gradient or op result became NaN or infinite.
class DivergedError : public Error {
 public:
  using Error::Error;
};

/// Memory or disk space ran out.
class ResourceError : public Error {
 public:
  using Error::Error;
};

/// A device that was asked for is not there, or failed.
class DeviceError : public Error {
 public:
  using Error::Error;
};

/// Work that a device cannot record for later: it waits for the host in its middle.
class CaptureError : public DeviceError {
 public:
  using DeviceError::DeviceError;
};

}  // namespace margay
