#include "engine/capture.h"

#include <atomic>
#include <stdexcept>

#include "engine/storage.h"

namespace margay {

Capture::Capture() {
  static std::atomic<uint64_t> captures{0};
  if (current_) throw std::logic_error("a capture was started inside a capture");
  number_ = ++captures;
  current_ = this;
}

void Capture::use(const std::shared_ptr<Storage>& storage) {
  if (storage->capture() != number_) from_before_.insert(storage);
}

}  // namespace margay
