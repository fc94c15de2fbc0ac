#pragma once
#include <cstdint>
#include <utility>

namespace margay::kernels {

/// The workspace of one piece, handed out part by part.
template <class T>
struct Workspace {
  T* next;
  T* take(int64_t size) { return std::exchange(next, next + size); }
};

}  // namespace margay::kernels
