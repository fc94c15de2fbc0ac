#include "engine/cuda/graph.cuh"

#include <utility>

#include "engine/capture.h"
#include "engine/cuda/check.cuh"

namespace margay::cuda {
namespace {

cudaStream_t stream_of(const DeviceBackend& backend) { return static_cast<cudaStream_t>(backend.stream()); }

/// What the runtime recorded, in the form in which it is made.
class Recording {
 public:
  // Relaxed: a pool that grows calls cudaMalloc, which other modes forbid.
  explicit Recording(cudaStream_t stream) : stream_(stream) {
    MARGAY_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
    open_ = true;
  }
  // Gives up where the work has thrown. That the recording may have become invalid is no news then.
  ~Recording() {
    if (open_ && cudaStreamEndCapture(stream_, &graph_) != cudaSuccess) static_cast<void>(cudaGetLastError());
    if (graph_) static_cast<void>(cudaGraphDestroy(graph_));
  }
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  cudaGraphExec_t finish() {
    open_ = false;
    MARGAY_CUDA_CHECK(cudaStreamEndCapture(stream_, &graph_));
    cudaGraphExec_t executable = nullptr;
    MARGAY_CUDA_CHECK(cudaGraphInstantiate(&executable, graph_, 0));
    return executable;
  }

 private:
  cudaStream_t stream_;
  cudaGraph_t graph_ = nullptr;
  bool open_ = false;
};

class Graph : public DeviceGraph {
 public:
  Graph(DeviceBackend& backend, std::shared_ptr<MemoryPool> pool) : backend_(backend), pool_(std::move(pool)) {}
  // A replay that still runs goes on; whoever gets its memory next runs later on the same stream.
  ~Graph() override {
    if (executable_) static_cast<void>(cudaGraphExecDestroy(executable_));
  }

  void record(const std::function<void()>& work) {
    const Capture capture;
    const PoolScope memory(*pool_);
    Recording recording(stream_of(backend_));
    work();
    executable_ = recording.finish();
    used_ = capture.from_before();
  }
  void replay() override { MARGAY_CUDA_CHECK(cudaGraphLaunch(executable_, stream_of(backend_))); }

 private:
  DeviceBackend& backend_;
  std::shared_ptr<MemoryPool> pool_;
  Capture::Storages used_;
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace

// The work has run before in earnest, or will: what is wrong with it for another reason shows there.
std::unique_ptr<DeviceGraph> capture(DeviceBackend& backend, std::shared_ptr<MemoryPool> pool,
                                     const std::function<void()>& work) {
  auto graph = std::make_unique<Graph>(backend, std::move(pool));
  try {
    graph->record(work);
  } catch (const CudaError& error) {
    throw CaptureError(error.what());
  }
  return graph;
}

}  // namespace margay::cuda
