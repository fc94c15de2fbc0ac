#include "ops/landmark_choice.h"

#include <array>
#include <limits>

#include "engine/launch.h"

namespace margay {
namespace {

Samples samples();
const Op op{"landmark_choice", no_grad("its result is integer"), samples};

struct SampleCase {
  const char* name;
  int64_t B, H, Lq, Lk, dh, block, count;
};

Samples samples() {
  constexpr std::array cases = {
      SampleCase{"one of some", 2, 2, 12, 12, 5, 3, 1},
      SampleCase{"three of some, last block incomplete", 1, 2, 23, 23, 8, 4, 3},
      SampleCase{"more than there are", 1, 1, 9, 9, 3, 2, 4},
      SampleCase{"queries after cached keys", 2, 1, 5, 40, 4, 3, 2},
      SampleCase{"one query, many landmarks", 1, 2, 1, 700, 3, 2, 5},
      SampleCase{"several tiles of queries and of landmarks", 1, 1, 600, 600, 2, 2, 2},
      SampleCase{"blocks of one token", 1, 2, 9, 9, 17, 1, 2},
      SampleCase{"shorter than a block", 2, 1, 4, 4, 3, 5, 2},
      SampleCase{"none", 1, 1, 8, 8, 3, 2, 0},
      SampleCase{"no queries", 2, 2, 0, 6, 4, 2, 1},
      SampleCase{"heads of size 0", 1, 2, 6, 6, 0, 2, 1},
  };
  Samples all;
  for (const SampleCase& c : cases)
    all.push_back(
        {.inputs = {real({c.B, c.H, c.Lq, c.dh}), real({c.B, c.H, c.Lk / c.block, c.dh})},
         .call = [c](const Tensors& in) { return Tensors{landmark_choice(in[0], in[1], c.Lk, c.block, c.count)}; },
         .name = c.name});
  return all;
}

kernels::LandmarkShape check(const Tensor& q, const Tensor& landmarks, int64_t seq_len, int64_t block_size,
                             int64_t count) {
  op.require_float("q", q);
  op.require(q.ndim() == 4, "q", q, "[B,H,Lq,dh]");
  op.require(seq_len >= q.dim(2), "seq_len", seq_len, "at least the number of queries, {}", q.dim(2));
  op.require(block_size >= 1, "block_size", block_size, "1 or more");
  op.require(count >= 0, "count", count, "0 or more");
  op.require_like("landmarks", landmarks, "q", q);
  const int64_t M = seq_len / block_size;
  op.require(landmarks.shape() == q.shape().with(2, M) && M <= std::numeric_limits<int32_t>::max(), "landmarks",
             landmarks, "[B,H,{},dh] for q {}, {} tokens and blocks of {}", M, q, seq_len, block_size);
  return {q.dim(0), q.dim(1), q.dim(2), seq_len, q.dim(3), M, block_size};
}

}  // namespace

Tensor landmark_choice(const Tensor& q, const Tensor& landmarks, int64_t seq_len, int64_t block_size, int64_t count) {
  const kernels::LandmarkShape shape = check(q, landmarks, seq_len, block_size, count);
  const Tensor queries = with_contiguous_rows(q.detach()), rows = with_contiguous_rows(landmarks.detach());
  const Tensor blocks = empty({shape.B, shape.H, shape.Lq, count}, DType::i32, q.device());
  Tensor workspace;
  op.launch<kernels::LandmarkChoice>(q, [&]<class T>(kernels::LandmarkChoice<T>& a) {
    a = {.shape = shape,
         .count = count,
         .q = queries.strided<T>().data,
         .landmarks = rows.strided<T>().data,
         .q_strides = head_strides(queries),
         .landmark_strides = head_strides(rows),
         .blocks = blocks.data<int32_t>(),
         .workspace = nullptr};
    a.shape.cut();
    workspace = empty({a.workspace_size(q.device().type)}, acc_dtype(q.dtype()), q.device());
    a.workspace = workspace.data<acc_t<T>>();
  });
  return blocks;
}

}  // namespace margay
