#pragma once
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "engine/tensor.h"

namespace margay {

/// Tensors side by side in one block of a device's memory, and a copy of them on the host: one transfer takes all over.
class PackedTensors {
 public:
  struct Spec {
    DType dtype;
    Shape shape;
  };
  PackedTensors(const std::vector<Spec>& specs, Device device);

  const Tensor& operator[](size_t i) const { return tensors_[i]; }
  /// The elements of tensor i on the host. Throws std::logic_error on another dtype.
  template <class T>
  std::span<T> host(size_t i) {
    return {reinterpret_cast<T*>(host_of(i, dtype_of<T>)), static_cast<size_t>(tensors_[i].numel())};
  }
  /// Host to device. The host's copy may be written again at once.
  void upload();
  /// Device to host. Waits for the work that was handed to the device before.
  void download();

 private:
  std::byte* host_of(size_t i, DType dtype);

  std::shared_ptr<Storage> storage_;
  std::vector<std::byte> host_;
  Tensors tensors_;
};

}  // namespace margay
