#include "tests/cuda_emulator/stream.h"

#include <algorithm>
#include <mutex>
#include <thread>
#include <utility>

namespace {

enum class State { none, recording, invalid };

}  // namespace

struct EmulatedStream {
  State state = State::none;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id thread;
  std::vector<cuda_emulator::Work> recorded;
};
struct EmulatedEvent {
  cudaStream_t captured_by = nullptr;  // the stream in whose recording it lies
};
struct EmulatedGraph {
  std::vector<cuda_emulator::Work> work;
};
struct EmulatedGraphExec {
  std::shared_ptr<const std::vector<cuda_emulator::Work>> work;
};

namespace {

std::mutex mutex;
std::vector<EmulatedStream*> capturing;  // streams that are not in State::none

// Whatever is wrong in a recording spoils it as a whole.
cudaError_t spoil(EmulatedStream& stream, cudaError_t error) {
  stream.state = State::invalid;
  return error;
}

}  // namespace

namespace cuda_emulator {

bool is_capturing(cudaStream_t stream) { return stream && stream->state != State::none; }

cudaError_t record(cudaStream_t stream, Work work) {
  if (stream->state == State::invalid) return cudaErrorStreamCaptureInvalidated;
  stream->recorded.push_back(std::move(work));
  return cudaSuccess;
}

cudaError_t check_unsafe_call() {
  const std::lock_guard lock(mutex);
  cudaError_t status = cudaSuccess;
  for (EmulatedStream* const stream : capturing) {
    const bool own = stream->thread == std::this_thread::get_id();
    if (stream->mode == cudaStreamCaptureModeGlobal || (stream->mode == cudaStreamCaptureModeThreadLocal && own))
      status = spoil(*stream, cudaErrorStreamCaptureUnsupported);
  }
  return status;
}

}  // namespace cuda_emulator

// Streams live as long as the process, as those of the project do.
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new EmulatedStream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return cuda_emulator::is_capturing(stream) ? spoil(*stream, cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  if (!stream) return cudaErrorStreamCaptureUnsupported;  // the default stream cannot be captured
  const std::lock_guard lock(mutex);
  if (stream->state != State::none) return cudaErrorInvalidValue;
  stream->state = State::recording;
  stream->mode = mode;
  stream->thread = std::this_thread::get_id();
  capturing.push_back(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  const std::lock_guard lock(mutex);
  if (!cuda_emulator::is_capturing(stream)) return cudaErrorInvalidValue;
  if (stream->mode != cudaStreamCaptureModeRelaxed && stream->thread != std::this_thread::get_id())
    return spoil(*stream, cudaErrorStreamCaptureWrongThread);
  std::erase(capturing, stream);
  const std::vector<cuda_emulator::Work> work = std::exchange(stream->recorded, {});
  if (std::exchange(stream->state, State::none) == State::invalid) return cudaErrorStreamCaptureInvalidated;
  *graph = new EmulatedGraph{work};
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new EmulatedEvent;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event->captured_by = cuda_emulator::is_capturing(stream) ? stream : nullptr;
  return event->captured_by ? cuda_emulator::record(stream, [] {}) : cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (!event->captured_by) return cudaSuccess;
  if (cuda_emulator::is_capturing(event->captured_by)) spoil(*event->captured_by, cudaErrorCapturedEvent);
  return cudaErrorCapturedEvent;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = new EmulatedGraphExec{std::make_shared<const std::vector<cuda_emulator::Work>>(graph->work)};
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  auto all = [work = executable->work] {
    for (const cuda_emulator::Work& one : *work) one();
  };
  if (cuda_emulator::is_capturing(stream)) return cuda_emulator::record(stream, all);
  all();
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}
