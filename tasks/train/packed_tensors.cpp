#include "tasks/train/packed_tensors.h"

#include <stdexcept>

namespace margay {

PackedTensors::PackedTensors(const std::vector<Spec>& specs, Device device) {
  constexpr size_t alignment = 256;  // what kernels may count on
  std::vector<size_t> begins;
  size_t bytes = 0;
  for (const Spec& spec : specs) {
    begins.push_back(bytes);
    const size_t size = static_cast<size_t>(spec.shape.numel()) * size_of(spec.dtype);
    bytes += (size + alignment - 1) / alignment * alignment;
  }
  storage_ = std::make_shared<Storage>(bytes, device);
  host_.resize(bytes);
  for (size_t i = 0; i < specs.size(); ++i) {
    const auto& [dtype, shape] = specs[i];
    const auto offset = static_cast<int64_t>(begins[i] / size_of(dtype));
    tensors_.emplace_back(storage_, dtype, shape, contiguous_strides(shape), offset);
  }
}

std::byte* PackedTensors::host_of(size_t i, DType dtype) {
  const Tensor& tensor = tensors_[i];
  if (tensor.dtype() != dtype) throw std::logic_error("a packed tensor was read as another dtype");
  return host_.data() + static_cast<size_t>(tensor.offset()) * size_of(dtype);
}

void PackedTensors::upload() {
  storage_->bump_version();
  backend(storage_->device()).copy_from_host(storage_->data(), host_.data(), host_.size());
}

void PackedTensors::download() {
  backend(storage_->device()).copy_to_host(host_.data(), storage_->data(), host_.size());
}

}  // namespace margay
