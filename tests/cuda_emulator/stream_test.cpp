// What the emulator answers about recording, as the documentation of the CUDA runtime has it.

#include "tests/cuda_emulator/stream.h"

#include <doctest/doctest.h>

#include <thread>

#include "tests/cuda_emulator/cuda_runtime_api.h"

namespace {

cudaStream_t new_stream() {
  cudaStream_t stream = nullptr;
  REQUIRE(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  return stream;
}

void add_kernel(int* to, int value) { *to += value; }

cudaError_t add(cudaStream_t stream, int* to, int value) {
  void* arguments[] = {&to, &value};
  return cudaLaunchKernel(add_kernel, dim3(1), dim3(1), arguments, 0, stream);
}

/// What a recording ends with in which one call was made.
template <class Call>
cudaError_t end_after(cudaStreamCaptureMode mode, cudaError_t expected, const Call& call) {
  const cudaStream_t stream = new_stream();
  REQUIRE(cudaStreamBeginCapture(stream, mode) == cudaSuccess);
  CHECK(call(stream) == expected);
  cudaGraph_t graph = nullptr;
  const cudaError_t end = cudaStreamEndCapture(stream, &graph);
  CHECK((graph != nullptr) == (end == cudaSuccess));
  if (graph) CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  CHECK(cudaStreamSynchronize(stream) == cudaSuccess);  // usable again
  return end;
}

cudaError_t allocate() {
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, 16);
  if (memory) CHECK(cudaFree(memory) == cudaSuccess);
  return status;
}

}  // namespace

TEST_CASE("emulator: a stream that records runs nothing, and a launch runs all with the arguments of then") {
  const cudaStream_t stream = new_stream();
  int sum = 0, copy = 0, bits = 0;
  REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed) == cudaSuccess);
  for (int value = 1; value <= 3; ++value) CHECK(add(stream, &sum, value) == cudaSuccess);
  CHECK(cudaMemcpyAsync(&copy, &sum, sizeof(int), cudaMemcpyDeviceToDevice, stream) == cudaSuccess);
  CHECK(cudaMemsetAsync(&bits, 0xff, sizeof(int), stream) == cudaSuccess);
  cudaGraph_t graph = nullptr;
  REQUIRE(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  CHECK(sum == 0);
  CHECK(bits == 0);
  cudaGraphExec_t executable = nullptr;
  REQUIRE(cudaGraphInstantiate(&executable, graph, 0) == cudaSuccess);
  CHECK(cudaGraphDestroy(graph) == cudaSuccess);  // the executable needs it no more
  for (int launch = 1; launch <= 2; ++launch) {
    CHECK(cudaGraphLaunch(executable, stream) == cudaSuccess);
    CHECK(sum == 6 * launch);
    CHECK(copy == sum);
    CHECK(bits == -1);
  }
  CHECK(cudaGraphExecDestroy(executable) == cudaSuccess);
}

TEST_CASE("emulator: a graph that is launched on a stream that records becomes part of the recording") {
  const cudaStream_t stream = new_stream();
  int sum = 0;
  cudaGraphExec_t executables[2] = {};
  for (int i = 0; i < 2; ++i) {
    REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed) == cudaSuccess);
    CHECK(add(stream, &sum, 1) == cudaSuccess);
    if (i == 1) CHECK(cudaGraphLaunch(executables[0], stream) == cudaSuccess);
    cudaGraph_t graph = nullptr;
    REQUIRE(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
    REQUIRE(cudaGraphInstantiate(&executables[i], graph, 0) == cudaSuccess);
    CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  }
  CHECK(sum == 0);
  CHECK(cudaGraphExecDestroy(executables[0]) == cudaSuccess);
  CHECK(cudaGraphLaunch(executables[1], stream) == cudaSuccess);
  CHECK(sum == 2);
  CHECK(cudaGraphExecDestroy(executables[1]) == cudaSuccess);
}

TEST_CASE("emulator: calls that wait make a recording invalid") {
  constexpr auto relaxed = cudaStreamCaptureModeRelaxed;
  CHECK(end_after(relaxed, cudaErrorStreamCaptureUnsupported, [](cudaStream_t stream) {
          return cudaStreamSynchronize(stream);
        }) == cudaErrorStreamCaptureInvalidated);
  CHECK(end_after(relaxed, cudaErrorCapturedEvent, [](cudaStream_t stream) {
          cudaEvent_t event = nullptr;
          CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming) == cudaSuccess);
          CHECK(cudaEventRecord(event, stream) == cudaSuccess);
          const cudaError_t status = cudaEventSynchronize(event);
          CHECK(cudaEventDestroy(event) == cudaSuccess);
          return status;
        }) == cudaErrorStreamCaptureInvalidated);
  CHECK(end_after(relaxed, cudaErrorStreamCaptureInvalidated, [](cudaStream_t stream) {
          int sum = 0;
          CHECK(cudaStreamSynchronize(stream) != cudaSuccess);
          const cudaError_t status = add(stream, &sum, 1);
          CHECK(sum == 0);
          return status;
        }) == cudaErrorStreamCaptureInvalidated);
}

TEST_CASE("emulator: the mode of a recording decides about calls that may wait") {
  const auto own = [](cudaStream_t) { return allocate(); };
  const auto other = [](cudaStream_t) {
    cudaError_t status = cudaSuccess;
    std::thread([&] { status = allocate(); }).join();
    return status;
  };
  constexpr auto unsupported = cudaErrorStreamCaptureUnsupported, invalid = cudaErrorStreamCaptureInvalidated;
  CHECK(end_after(cudaStreamCaptureModeRelaxed, cudaSuccess, own) == cudaSuccess);
  CHECK(end_after(cudaStreamCaptureModeRelaxed, cudaSuccess, other) == cudaSuccess);
  CHECK(end_after(cudaStreamCaptureModeThreadLocal, unsupported, own) == invalid);
  CHECK(end_after(cudaStreamCaptureModeThreadLocal, cudaSuccess, other) == cudaSuccess);
  CHECK(end_after(cudaStreamCaptureModeGlobal, unsupported, own) == invalid);
  CHECK(end_after(cudaStreamCaptureModeGlobal, unsupported, other) == invalid);
}

TEST_CASE("emulator: a recording begins and ends once, on the thread that began it unless it is relaxed") {
  const cudaStream_t stream = new_stream();
  cudaGraph_t graph = nullptr;
  CHECK(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeRelaxed) == cudaErrorStreamCaptureUnsupported);
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorInvalidValue);
  for (const auto mode : {cudaStreamCaptureModeRelaxed, cudaStreamCaptureModeThreadLocal}) {
    REQUIRE(cudaStreamBeginCapture(stream, mode) == cudaSuccess);
    CHECK(cudaStreamBeginCapture(stream, mode) == cudaErrorInvalidValue);
    cudaError_t status = cudaSuccess;
    std::thread([&] { status = cudaStreamEndCapture(stream, &graph); }).join();
    if (mode == cudaStreamCaptureModeRelaxed) {
      CHECK(status == cudaSuccess);
      CHECK(cudaGraphDestroy(graph) == cudaSuccess);
    } else {
      CHECK(status == cudaErrorStreamCaptureWrongThread);
      CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated);
    }
  }
}
