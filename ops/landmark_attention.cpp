#include "ops/landmark_attention.h"

#include <array>

#include "engine/launch.h"

namespace margay {
namespace {

Samples samples();
const Op op{"landmark_attention", samples};

struct SampleCase {
  const char* name;
  LandmarkGate gate;
  int64_t B, H, Lq, Lk, dh, block;
  int64_t K = -1;  // -1: all blocks
  bool own_query = false, bias = false, beta = false;
  double dropout = 0;
};

// Lists as landmark_choice makes them, of blocks spread over those before each query.
Tensor some_blocks(const SampleCase& c, Device device) {
  std::vector<int32_t> blocks;
  for (int64_t row = 0; row < c.B * c.H * c.Lq; ++row) {
    const int64_t before = (c.Lk - c.Lq + row % c.Lq) / c.block, count = std::min(c.K, before);
    for (int64_t n = 0; n < c.K; ++n)
      blocks.push_back(n < count ? static_cast<int32_t>((n * before + row % before) / count) : -1);
  }
  return from_values(blocks, {c.B, c.H, c.Lq, c.K}, device);
}

Sample sample_of(const SampleCase& c) {
  Sample sample;
  sample.name = c.name;
  const Shape queries{c.B, c.H, c.Lq, c.dh}, keys{c.B, c.H, c.Lk, c.dh};
  sample.inputs = {real(queries, -2, 2), real(keys, -2, 2), real(keys), real({c.B, c.H, c.Lk / c.block, c.dh})};
  if (c.own_query) sample.inputs.push_back(real(queries, -2, 2));
  if (c.bias) sample.inputs.push_back(real({c.H}));
  if (c.beta) sample.inputs.push_back(real({c.H}));
  sample.call = [c](const Tensors& in) {
    size_t next = 4;
    const auto optional = [&](bool given) { return given ? in[next++] : Tensor(); };
    LandmarkAttentionInputs inputs{in[0], in[1], in[2], optional(c.own_query), in[3], {}, {}, {}};
    inputs.bias = optional(c.bias);
    inputs.beta = optional(c.beta);
    if (c.K >= 0) inputs.blocks = some_blocks(c, in[0].device());
    LandmarkAttentionOptions options{.block_size = c.block, .gate = c.gate, .scale = 0.4, .dropout = c.dropout};
    options.stream = 5;
    if (c.dropout > 0) options.rng = from_values<int64_t>({11, 3}, {2}, in[0].device());
    return Tensors{landmark_attention(inputs, options)};
  };
  return sample;
}

Samples samples() {
  constexpr auto grouped = LandmarkGate::grouped, additive = LandmarkGate::additive, none = LandmarkGate::none;
  constexpr std::array cases = {
      SampleCase{"one token", grouped, 2, 1, 1, 1, 3, 1},
      SampleCase{"all blocks", grouped, 1, 2, 8, 8, 3, 3, -1, true, true},
      SampleCase{"all blocks, additive", additive, 2, 1, 8, 8, 3, 3, -1, true, true},
      SampleCase{"all blocks, no gate", none, 1, 2, 8, 8, 3, 3, -1, true, true},
      SampleCase{"two blocks", grouped, 2, 2, 11, 11, 2, 3, 2, true, true, true},
      SampleCase{"two blocks, additive", additive, 1, 2, 11, 11, 2, 3, 2, true, true, true},
      SampleCase{"two blocks, no gate", none, 1, 1, 11, 11, 2, 3, 2, true, true, true},
      SampleCase{"landmarks of the queries", grouped, 1, 2, 9, 9, 3, 4, 1, false, true},
      SampleCase{"landmarks of the queries, additive", additive, 1, 2, 9, 9, 3, 4, 1, false, true},
      SampleCase{"shorter than a block", grouped, 1, 2, 4, 4, 3, 6, 2, false, true},
      SampleCase{"blocks of one token", grouped, 1, 1, 7, 7, 3, 1, 3},
      SampleCase{"blocks of more than a vector", grouped, 1, 1, 41, 41, 1, 19, -1, false, false, true},
      SampleCase{"several tiles", grouped, 1, 1, 130, 130, 1, 16, 2, false, true},
      SampleCase{"several tiles, all blocks", grouped, 1, 1, 130, 130, 1, 33, -1},
      SampleCase{"queries after cached keys", grouped, 2, 1, 5, 21, 3, 4, 2, true, false, true},
      SampleCase{"one query after cached keys", grouped, 1, 1, 1, 22, 17, 4, 3, false, true},
      SampleCase{"dropout", grouped, 1, 2, 9, 11, 3, 4, 2, false, true, false, 0.3},
      SampleCase{"dropout, additive", additive, 1, 1, 9, 11, 3, 4, -1, true, false, false, 0.2},
      SampleCase{"no block", grouped, 1, 1, 5, 5, 3, 2, 0},
      SampleCase{"no tokens", grouped, 2, 2, 0, 0, 4, 2, 1, false, true, true},
      SampleCase{"no queries", additive, 2, 2, 0, 5, 4, 2, -1, true, true, true},
      SampleCase{"no heads", none, 2, 0, 3, 3, 4, 2, 1},
      SampleCase{"heads of size 0", grouped, 1, 2, 5, 5, 0, 2, 1, false, true, true},
  };
  Samples all;
  for (const SampleCase& c : cases) all.push_back(sample_of(c));
  return all;
}

void check_heads(const LandmarkAttentionInputs& in) {
  op.require_float("q", in.q);
  op.require(in.q.ndim() == 4, "q", in.q, "[B,H,Lq,dh]");
  op.require_like("k", in.k, "q", in.q);
  op.require(in.k.ndim() == 4 && in.k.shape().with(2, in.q.dim(2)) == in.q.shape() && in.k.dim(2) >= in.q.dim(2), "k",
             in.k, "[B,H,Lk,dh] with Lk >= Lq for q {}", in.q);
  op.require_like("v", in.v, "q", in.q);
  op.require(in.v.shape() == in.k.shape(), "v", in.v, "of the shape of k {}", in.k);
  for (const auto& [name, per_head] : {std::pair{"bias", in.bias}, {"beta", in.beta}}) {
    if (!per_head.defined()) continue;
    op.require_like(name, per_head, "q", in.q);
    op.require(per_head.shape() == Shape{in.q.dim(1)}, name, per_head, "[H] for q {}", in.q);
  }
}

kernels::LandmarkShape check(const LandmarkAttentionInputs& in, const LandmarkAttentionOptions& options) {
  check_heads(in);
  op.require(options.block_size >= 1, "block_size", options.block_size, "1 or more");
  const int64_t Lk = in.k.dim(2), M = Lk / options.block_size;
  if (in.landmark_q.defined()) {
    op.require_like("landmark_q", in.landmark_q, "q", in.q);
    op.require(in.landmark_q.shape() == in.q.shape(), "landmark_q", in.landmark_q, "of the shape of q {}", in.q);
  }
  op.require_like("landmarks", in.landmarks, "q", in.q);
  op.require(in.landmarks.shape() == in.q.shape().with(2, M), "landmarks", in.landmarks,
             "[B,H,{},dh] for k {} and blocks of {}", M, in.k, options.block_size);
  if (in.blocks.defined()) {
    const bool fits = in.blocks.dtype() == DType::i32 && in.blocks.device() == in.q.device() && in.blocks.ndim() == 4;
    op.require(fits && in.blocks.shape() == in.q.shape().with(3, in.blocks.dim(3)), "blocks", in.blocks,
               "i32[B,H,Lq,K] on the device of q {}", in.q);
  }
  require_attention_dropout(op, options.dropout, options.rng, in.q);
  return {in.q.dim(0), in.q.dim(1), in.q.dim(2), Lk, in.q.dim(3), M, options.block_size};
}

// What forward and backward have in common.
struct Call {
  kernels::LandmarkShape shape;
  LandmarkGate gate;
  Saved q, k, v, landmark_q, landmarks, bias, beta, blocks, rng;  // landmark_q is undefined where it is q
  double scale, dropout;
  uint64_t stream;

  template <class T, class Args>
  void fill(Args& a) const {
    const Tensor& queries = landmark_q->defined() ? *landmark_q : *q;
    a.shape = shape;
    a.K = blocks->defined() ? blocks->dim(3) : 0;
    a.gate = gate;
    a.q = q->strided<T>().data;
    a.k = k->strided<T>().data;
    a.v = v->strided<T>().data;
    a.landmark_q = queries.strided<T>().data;
    a.landmarks = landmarks->strided<T>().data;
    a.q_strides = head_strides(q);
    a.k_strides = head_strides(k);
    a.v_strides = head_strides(v);
    a.landmark_q_strides = head_strides(queries);
    a.landmark_strides = head_strides(landmarks);
    a.scale = scale;
    a.bias = bias->defined() ? bias->data<T>() : nullptr;
    a.beta = beta->defined() ? beta->data<T>() : nullptr;
    a.blocks = blocks->defined() ? blocks->data<int32_t>() : nullptr;
    a.dropout = {dropout, dropout > 0 ? rng->data<int64_t>() : nullptr, stream};
  }
};

// Memory that a kernel works in.
struct Scratch {
  Tensor floats, integers;

  template <class T, class Args>
  void give(Args& a, const Tensor& like) {
    floats = empty({a.workspace_size(like.device().type)}, acc_dtype(like.dtype()), like.device());
    integers = empty({a.lists_total()}, DType::i32, like.device());
    a.workspace = floats.data<acc_t<T>>();
    a.lists = integers.data<int32_t>();
  }
};

// Which inputs, in the order of `record`.
enum Input : size_t { kQ, kK, kV, kLandmarkQ, kLandmarks, kBias, kBeta, kInputs };

Tensors pull_back(const Call& call, const Tensor& y, const Tensor& lse, const VjpContext& context) {
  const kernels::LandmarkShape& s = call.shape;
  const Tensor dy = with_contiguous_rows(context.cotangent());
  const DType dtype = y.dtype();
  const Device device = y.device();
  const bool together = s.Lq == s.Lk, gated = call.gate != LandmarkGate::none;
  const auto queries_like = [&] { return heads_view(empty({s.B, s.Lq, 1, s.H, s.dh}, dtype, device)); };
  const Tensor packed = empty({s.B, s.Lk, together ? 3 : 2, s.H, s.dh}, dtype, device);
  Tensors gradients(kInputs);
  gradients[kQ] = together ? heads_view(packed) : queries_like();
  gradients[kK] = heads_view(packed, together ? 1 : 0);
  gradients[kV] = heads_view(packed, together ? 2 : 1);
  if (gated && call.landmark_q->defined()) gradients[kLandmarkQ] = queries_like();
  if (gated) gradients[kLandmarks] = empty({s.B, s.H, s.M, s.dh}, dtype, device);
  if (gated && context.wanted(kBias)) gradients[kBias] = empty({s.H}, dtype, device);
  if (context.wanted(kBeta)) gradients[kBeta] = empty({s.H}, dtype, device);
  Scratch scratch;
  op.launch<kernels::LandmarkAttentionBwd>(y, [&]<class T>(kernels::LandmarkAttentionBwd<T>& a) {
    const auto pointer = [&](Input input) {
      return gradients[input].defined() ? gradients[input].template strided<T>().data : nullptr;
    };
    call.fill<T>(a);
    a.y = y.strided<T>().data;
    a.dy = dy.strided<T>().data;
    a.y_strides = head_strides(y);
    a.dy_strides = head_strides(dy);
    a.lse = lse.data<acc_t<T>>();
    a.dq = pointer(kQ);
    a.dk = pointer(kK);
    a.dv = pointer(kV);
    a.dq_strides = head_strides(gradients[kQ]);
    a.dk_strides = head_strides(gradients[kK]);
    a.dv_strides = head_strides(gradients[kV]);
    a.dlandmark_q = pointer(kLandmarkQ);
    if (a.dlandmark_q) a.dlandmark_q_strides = head_strides(gradients[kLandmarkQ]);
    a.dlandmarks = pointer(kLandmarks);
    a.dbias = pointer(kBias);
    a.dbeta = pointer(kBeta);
    a.shape.cut(s.Lq / a.groups());
    scratch.give<T>(a, y);
  });
  return gradients;
}

}  // namespace

Tensor landmark_attention(const LandmarkAttentionInputs& in, const LandmarkAttentionOptions& options) {
  const kernels::LandmarkShape shape = check(in, options);
  const std::array<Tensor, kInputs> inputs{in.q, in.k, in.v, in.landmark_q, in.landmarks, in.bias, in.beta};
  const auto saved_heads = [](const Tensor& x) { return Saved(x.defined() ? with_contiguous_rows(x) : x); };
  const auto saved = [](const Tensor& x) { return Saved(x.defined() ? x.contiguous() : x); };
  const Call call{.shape = shape,
                  .gate = options.gate,
                  .q = saved_heads(in.q),
                  .k = saved_heads(in.k),
                  .v = saved_heads(in.v),
                  .landmark_q = saved_heads(in.landmark_q),
                  .landmarks = saved_heads(in.landmarks),
                  .bias = saved(in.bias),
                  .beta = saved(in.beta),
                  .blocks = saved(in.blocks),
                  .rng = saved(options.dropout > 0 ? options.rng : Tensor()),
                  .scale = options.scale,
                  .dropout = options.dropout,
                  .stream = options.stream};
  const Tensor y = heads_view(empty({shape.B, shape.Lq, 1, shape.H, shape.dh}, in.q.dtype(), in.q.device()));
  const Tensor lse =
      Graph::recording(inputs) ? empty({shape.B, shape.H, shape.Lq}, acc_dtype(y.dtype()), y.device()) : Tensor();
  Scratch scratch;
  op.launch<kernels::LandmarkAttentionFwd>(y, [&]<class T>(kernels::LandmarkAttentionFwd<T>& a) {
    call.fill<T>(a);
    a.shape.cut();
    a.y = y.strided<T>().data;
    a.y_strides = head_strides(y);
    a.lse = lse.defined() ? lse.data<acc_t<T>>() : nullptr;
    scratch.give<T>(a, y);
  });
  return op.record(
      y, inputs, [call, y = Saved(y), lse](const VjpContext& context) { return pull_back(call, y, lse, context); },
      CotangentLayout::strided);
}

}  // namespace margay
