#pragma once
#include <cstdint>

#include "engine/op.h"

namespace margay {

/// The target that marks a row without a label: it adds nothing to a loss.
inline constexpr int32_t kIgnoredTarget = -100;

/// Which rows of `targets` i32 [R] carry a label, in ascending order: i32 [n]. Throws OpError in the name of `op`
/// unless every target is kIgnoredTarget or in [0, classes). Waits for the device, unless TrustedIndices: then all
/// rows.
Tensor label_rows(const Op& op, const Tensor& targets, int64_t classes);

namespace kernels {

template <class T>
struct FindLabels {
  using dtypes = Types<int32_t>;
  const T* targets;
  T* rows;          // [R], of which `count` are written
  int64_t* result;  // {count, first row whose target is out of range or -1}
  int64_t R, classes;
};
template <class T>
void run(Cpu, const FindLabels<T>&);
template <class T>
void run(Cuda, const FindLabels<T>&);

}  // namespace kernels
}  // namespace margay
