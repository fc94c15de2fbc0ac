#pragma once
#include "engine/allocator.h"

namespace margay {

/// Device memory for the length of a scope.
class Scratch {
 public:
  Scratch(CachingAllocator& allocator, size_t bytes) : allocator_(allocator), allocation_(allocator.allocate(bytes)) {}
  ~Scratch() { allocator_.free(allocation_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* data() const { return allocation_.data; }

 private:
  CachingAllocator& allocator_;
  CachingAllocator::Allocation allocation_;
};

}  // namespace margay
