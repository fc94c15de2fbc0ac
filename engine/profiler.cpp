#include "engine/profiler.h"

#include <stdexcept>

#include "engine/flop_counter.h"

namespace margay {

constinit thread_local Profiler* Profiler::current_ = nullptr;
constinit std::atomic<int> FlopCounter::users_ = 0;
constinit std::atomic<int64_t> FlopCounter::count_ = 0;

Profiler::Profiler(Device device) : device_(device), start_(std::chrono::steady_clock::now()) {
  if (current_) throw std::logic_error("a thread can have one profiler at a time");
  current_ = this;
  ++FlopCounter::users_;
}

Profiler::~Profiler() {
  --FlopCounter::users_;
  current_ = nullptr;
}

int64_t Profiler::now() const {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start_).count();
}

void Profiler::begin(std::string_view name, ScopeKind kind) {
  ProfileEvent event{.name = name, .kind = kind, .parent = open_};
  const bool inside_op = open_ >= 0 && events_[static_cast<size_t>(open_)].kind == ScopeKind::op;
  event.backward = open_ >= 0 && events_[static_cast<size_t>(open_)].backward;
  if (kind == ScopeKind::phase && name == "backward") event.backward = true;
  open_ = static_cast<int>(events_.size());
  if (kind == ScopeKind::op && !inside_op) last_op_ = open_;
  event.flops = -FlopCounter::count();
  event.begin_ns = now();
  events_.push_back(event);
}

void Profiler::end() {
  try {
    backend(device_).synchronize();
  } catch (...) {  // a scope may end while an exception passes; the device tells the next caller again
  }
  ProfileEvent& event = events_[static_cast<size_t>(open_)];
  event.end_ns = now();
  event.flops += FlopCounter::count();
  event.live_bytes = backend(device_).allocator().counters().live;
  open_ = event.parent;
}

void Profiler::add_bytes(std::string_view op, std::span<const Tensor> tensors) {
  if (last_op_ < 0) return;
  ProfileEvent& event = events_[static_cast<size_t>(last_op_)];
  if (event.name != op) return;
  for (const Tensor& tensor : tensors)
    if (tensor.defined()) event.bytes += tensor.numel() * static_cast<int64_t>(size_of(tensor.dtype()));
}

}  // namespace margay
