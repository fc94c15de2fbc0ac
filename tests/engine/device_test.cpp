#include "engine/device.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <string>

#include "engine/error.h"
#include "engine/tensor.h"

namespace margay::test {
namespace {

std::string message_of_device_error(const std::string& text) {
  try {
    static_cast<void>(parse_device(text));
  } catch (const DeviceError& error) {
    return error.what();
  }
  return {};
}

}  // namespace

TEST_CASE("devices are read from text") {
  CHECK(parse_device("cpu") == Device{});
  CHECK(to_string(Device{}) == "cpu");
  CHECK(to_string(Device{DeviceType::cuda, 0}) == "cuda");
  CHECK(to_string(Device{DeviceType::cuda, 3}) == "cuda:3");
  for (const char* text :
       {"", "gpu", "CPU", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cuda: 1", "cuda:99999999999", "cpu:0"})
    CHECK_THROWS_AS(static_cast<void>(parse_device(text)), ConfigError);
  CHECK_FALSE(describe_devices().empty());
  CHECK(describe_devices()[0].substr(0, 3) == "cpu");
}

TEST_CASE("the loader has chosen the kernels for the level that it was limited to") {
  CHECK(describe_devices()[0].ends_with(cpu_kernel_level()));
#ifdef __x86_64__
  const char* const limit = std::getenv("MARGAY_LEVEL");  // set by the tests of a build with MARGAY_LEVELS
  if (!limit) return;
  const std::string_view level = limit;
  const bool exists = level == "x86-64-v4"   ? __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
                      : level == "x86-64-v3" ? __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
                                             : false;
  CHECK(cpu_kernel_level() == (exists ? level : "x86-64"));
#endif
}

TEST_CASE("a GPU that is not there is named with the reason") {
  const int count = cuda_device_count();
  CHECK(cuda_unavailable_reason().empty() == (count > 0));
  const std::string message = message_of_device_error("cuda:" + std::to_string(count));
  CAPTURE(message);
  CHECK(message.find("cuda:" + std::to_string(count)) != std::string::npos);
  if (count == 0) {
    CHECK(parse_device("auto") == Device{});
    CHECK(message.find(cuda_unavailable_reason()) != std::string::npos);
    CHECK_FALSE(message_of_device_error("cuda").empty());
    CHECK_THROWS_AS(empty({1}, DType::f32, Device{DeviceType::cuda, 0}), DeviceError);
  } else {
    CHECK(parse_device("auto") == Device{DeviceType::cuda, 0});
    CHECK(parse_device("cuda") == Device{DeviceType::cuda, 0});
  }
}

}  // namespace margay::test
