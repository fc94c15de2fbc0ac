#include "engine/device.h"

#include <fmt/format.h>

#include <charconv>

#include "engine/error.h"

namespace margay {

#ifdef MARGAY_CUDA
// Defined in device_cuda.cu.
DeviceBackend& cuda_backend(int index);
std::string describe_cuda_device(int index);
#else
namespace {
DeviceBackend& cuda_backend(int) { throw DeviceError("cuda: " + cuda_unavailable_reason()); }
std::string describe_cuda_device(int) { return {}; }
}  // namespace
int cuda_device_count() { return 0; }
std::string cuda_unavailable_reason() { return "this build has no CUDA backend (configure with MARGAY_CUDA=on)"; }
#endif

DeviceBackend& backend(Device device) {
  return device.type == DeviceType::cpu ? cpu_backend() : cuda_backend(device.index);
}

std::unique_ptr<DeviceGraph> DeviceBackend::capture(std::shared_ptr<MemoryPool>, const std::function<void()>&) {
  throw CaptureError(fmt::format("{}: work cannot be recorded on this device", allocator().name()));
}

std::string to_string(Device device) {
  if (device.type == DeviceType::cpu) return "cpu";
  return device.index == 0 ? "cuda" : fmt::format("cuda:{}", device.index);
}

Device parse_device(std::string_view text) {
  if (text == "cpu") return {};
  if (text == "auto") return cuda_device_count() > 0 ? Device{DeviceType::cuda, 0} : Device{};
  int index = 0;
  const std::string_view digits = text.starts_with("cuda:") ? text.substr(5) : text == "cuda" ? "0" : "";
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), index);
  if (digits.empty() || error != std::errc() || end != digits.data() + digits.size() || index < 0)
    throw ConfigError(fmt::format("device must be cpu, cuda, cuda:N or auto, got \"{}\"", text));
  const int count = cuda_device_count();
  if (count == 0) throw DeviceError(fmt::format("device {}: {}", text, cuda_unavailable_reason()));
  if (index >= count) throw DeviceError(fmt::format("device {}: there are only {} GPUs", text, count));
  return {DeviceType::cuda, index};
}

std::vector<std::string> describe_devices() {
  std::vector<std::string> lines{"cpu: kernels for " + std::string(cpu_kernel_level())};
  for (int i = 0; i < cuda_device_count(); ++i) lines.push_back(describe_cuda_device(i));
  return lines;
}

}  // namespace margay
