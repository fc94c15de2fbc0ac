// Elementwise ops and ops on rows move packs of elements on a GPU, and single elements where tensors are not aligned or
// rows are not made of packs: both must give what the CPU gives, whatever the sizes and wherever tensors start.
// Skipped, and counted as skipped, where there is no GPU.

#include <doctest/doctest.h>

#include <functional>
#include <string>
#include <vector>

#include "engine/autograd.h"
#include "engine/device.h"
#include "ops/adamw.h"
#include "ops/binary.h"
#include "ops/concat.h"
#include "ops/conv1d_causal.h"
#include "ops/cross_entropy.h"
#include "ops/dropout.h"
#include "ops/glu.h"
#include "ops/grad_norm.h"
#include "ops/l2_normalize.h"
#include "ops/layer_norm.h"
#include "ops/linear.h"
#include "ops/rms_norm.h"
#include "ops/rms_norm_gated.h"
#include "ops/rope.h"
#include "ops/softmax.h"
#include "ops/unary.h"
#include "ops/where.h"
#include "tests/support/compare.h"

namespace margay::test {
namespace {

constexpr Device kGpu{DeviceType::cuda, 0};

bool no_gpu() { return cuda_device_count() == 0; }

/// The tensor on the GPU, contiguous, `offset` elements behind the begin of its storage.
Tensor at_offset(const Tensor& tensor, int64_t offset) {
  const Tensor buffer = zeros({tensor.numel() + offset}, tensor.dtype(), kGpu);
  const Tensor placed = buffer.view(tensor.shape(), contiguous_strides(tensor.shape()), offset);
  placed.copy_from(tensor.to(kGpu));
  return placed;
}

struct Case {
  std::string name;
  std::function<std::vector<Shape>(int64_t n)> shapes;  // of the inputs
  std::function<Tensor(const Tensors&)> call;
};

/// The result and the gradients of all inputs, those and the cotangent placed by `place`.
Tensors run(const Case& c, const Tensors& inputs, const std::function<Tensor(const Tensor&)>& place) {
  Tensors leaves;
  for (const Tensor& input : inputs) leaves.push_back(place(input).detach()), leaves.back().set_requires_grad();
  const Tensor y = c.call(leaves);
  Tensors results{y.detach()};
  if (!y.requires_grad()) return results;
  y.backward(place(random_uniform(y.shape(), 9).to(y.dtype())));
  for (const Tensor& leaf : leaves) results.push_back(leaf.grad());
  return results;
}

double tolerance(DType dtype) { return dtype == DType::f64 ? 1e-12 : dtype == DType::f32 ? 2e-5 : 5e-2; }

void check(const Case& c, int64_t n) {
  CAPTURE(c.name);
  CAPTURE(n);
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
    CAPTURE(std::string(name_of(dtype)));
    Tensors inputs, exact;
    for (const Shape& shape : c.shapes(n)) {
      inputs.push_back(random_uniform(shape, inputs.size() + 1, 0.3, 2).to(dtype));
      exact.push_back(inputs.back().to(DType::f64));
    }
    const Tensors expected = run(c, exact, [](const Tensor& t) { return t; });
    for (const int64_t offset : {0, 1, 3}) {
      if (n > 1000 && offset == 3) continue;  // to the emulated GPU long rows are expensive
      CAPTURE(offset);
      const Tensors got = run(c, inputs, [&](const Tensor& t) { return at_offset(t, offset); });
      REQUIRE(got.size() == expected.size());
      for (size_t i = 0; i < got.size(); ++i) {
        CAPTURE(i);
        CHECK(difference(got[i].to(Device{}), expected[i], tolerance(dtype)) == "");
      }
    }
  }
}

std::function<std::vector<Shape>(int64_t)> shapes(std::function<std::vector<Shape>(int64_t)> f) { return f; }

}  // namespace

TEST_CASE("gpu packs: elementwise ops at all sizes and places" * doctest::skip(no_gpu())) {
  const auto one = shapes([](int64_t n) { return std::vector<Shape>{{n}}; });
  const auto two = shapes([](int64_t n) { return std::vector<Shape>{{n}, {n}}; });
  const auto halves = shapes([](int64_t n) { return std::vector<Shape>{{3, 2 * n}}; });
  const std::vector<Case> cases = {
      {"exp", one, [](const Tensors& in) { return exp(in[0]); }},
      {"silu twice", one, [](const Tensors& in) { return silu(in[0]) + square(in[0]); }},
      {"neg", one, [](const Tensors& in) { return neg(in[0]); }},
      {"mul", two, [](const Tensors& in) { return in[0] * in[1]; }},
      {"div twice", two, [](const Tensors& in) { return in[0] / in[1] + in[1] * in[0]; }},
      {"number", one, [](const Tensors& in) { return 0.7 / in[0]; }},
      {"rows", shapes([](int64_t n) {
         return std::vector<Shape>{{3, n}, {n}};
       }),
       [](const Tensors& in) { return in[0] / in[1]; }},
      {"columns", shapes([](int64_t n) {
         return std::vector<Shape>{{3, n}, {3, 1}};
       }),
       [](const Tensors& in) { return in[0] / in[1]; }},
      {"less", two,
       [](const Tensors& in) {
         return less(in[0].detach().to(DType::f32), in[1].detach().to(DType::f32)).to(DType::f32);
       }},
      {"where", two, [](const Tensors& in) { return where(less(in[0].detach().to(DType::f64), 1.0), in[0], in[1]); }},
      {"swiglu", halves, [](const Tensors& in) { return swiglu(in[0]); }},
      {"glu of one row", shapes([](int64_t n) { return std::vector<Shape>{{2 * n}}; }),
       [](const Tensors& in) { return glu(in[0]); }},
      {"dropout", one,
       [](const Tensors& in) {
         return dropout(in[0], 0.4, from_values<int64_t>({7, 3}, {2}, in[0].device()), 11);
       }},
      {"concat", shapes([](int64_t n) {
         return std::vector<Shape>{{3, n}, {3, 8}, {3, 2 * n}};
       }),
       [](const Tensors& in) {
         return concat({in[0], in[1], in[2]}, 1);
       }},
      {"rope", shapes([](int64_t n) {
         return std::vector<Shape>{{2, 3, 4, 2 * n + 8}};
       }),
       [](const Tensors& in) {
         const int64_t pairs = in[0].dim(3) / 2 - 4;
         return rope(in[0], rope_table(2, 4, 2 * pairs, 100, 1, 64, in[0].dtype(), in[0].device()));
       }},
      {"rope with a sine elsewhere", shapes([](int64_t n) {
         return std::vector<Shape>{{2, 3, 4, 2 * n}};
       }),
       [](const Tensors& in) {
         const Tensor& x = in[0];
         RopeTable table = rope_table(2, 4, x.dim(3), 100, 1, 64, x.dtype(), x.device());
         if (x.device() == kGpu) table.sin = at_offset(table.sin, 1);
         return rope(x, table);
       }}};
  for (const Case& c : cases)
    for (const int64_t n : {1, 3, 4, 5, 8, 16, 1023, 1024, 4097})
      if (n < 4000 || c.shapes(1)[0].numel() <= 2) check(c, n);
}

// Widths for every team and number of packs, and for rows that are not made of packs; 17 rows end in the middle of a
// block, 600 are several pieces of the sums over rows.
TEST_CASE("gpu packs: ops on rows at all widths and places" * doctest::skip(no_gpu())) {
  const auto x = shapes([](int64_t n) { return std::vector<Shape>{{n == 16 ? 600 : n < 600 ? 17 : 2, n}}; });
  const auto scaled = shapes([=](int64_t n) { return std::vector<Shape>{x(n)[0], {n}}; });
  const auto gated = shapes([=](int64_t n) { return std::vector<Shape>{x(n)[0], x(n)[0], {n}}; });
  const auto normed = shapes([=](int64_t n) { return std::vector<Shape>{x(n)[0], {n}, {n}}; });
  const auto added = shapes([=](int64_t n) {
    const Shape few{n < 600 ? 17 : 2, n};  // the sum of bf16 is rounded: the gradients of many rows would drift apart
    return std::vector<Shape>{few, few, {n}, {n}};
  });
  const std::vector<Case> cases = {
      {"softmax", x, [](const Tensors& in) { return softmax(in[0]); }},
      {"softmax twice", x, [](const Tensors& in) { return square(in[0]) + softmax(in[0]); }},
      {"log_softmax", x, [](const Tensors& in) { return log_softmax(in[0]); }},
      {"masked_softmax", x,
       [](const Tensors& in) { return masked_softmax(in[0], less(in[0].detach().to(DType::f64), 1.0)); }},
      {"layer_norm", normed, [](const Tensors& in) { return layer_norm(in[0], in[1], in[2]); }},
      {"add_layer_norm", added,
       [](const Tensors& in) {
         const Tensors both = add_layer_norm(in[0], in[1], in[2], in[3]);
         return both[0] + both[1];
       }},
      {"rms_norm", scaled, [](const Tensors& in) { return rms_norm(in[0], in[1]); }},
      {"rms_norm_gated", gated, [](const Tensors& in) { return rms_norm_gated(in[0], in[1], in[2]); }},
      {"l2_normalize", x, [](const Tensors& in) { return l2_normalize(in[0]); }},
      {"l2_normalize twice", x, [](const Tensors& in) { return square(in[0]) + l2_normalize(in[0]); }},
      {"linear", shapes([=](int64_t n) {
         return std::vector<Shape>{{x(n)[0][0], 3}, {n, 3}, {n}};
       }),
       [](const Tensors& in) { return linear(in[0], in[1], in[2]); }},
      {"cross_entropy", x, [](const Tensors& in) {
         std::vector<int32_t> targets;
         for (int64_t r = 0; r < in[0].dim(0); ++r)
           targets.push_back(r % 5 == 1 ? -100 : static_cast<int32_t>((7 * r + 3) % in[0].dim(1)));
         const Tensor ids = from_values(targets, {in[0].dim(0)}, in[0].device());
         const CrossEntropy result = cross_entropy(in[0], ids);
         return result.nll + result.loss;
       }}};
  for (const Case& c : cases)
    for (const int64_t n : {1, 5, 8, 16, 64, 72, 128, 136, 248, 256, 520, 1024, 1030, 2056, 4096, 4104, 8200})
      check(c, n);
}

// x and dy are slices of wider buffers, which begin `start` elements into a row.
TEST_CASE("gpu packs: short convolutions at all widths and places" * doctest::skip(no_gpu())) {
  struct Convolution {
    int64_t B, L, C, W, filters;
    bool bias, initial;
  };
  for (const Convolution& c : {Convolution{2, 300, 136, 4, 136, true, true}, Convolution{1, 70, 8, 5, 8, false, true},
                               Convolution{2, 33, 16, 8, 16, true, false}, Convolution{1, 600, 12, 3, 12, true, true},
                               Convolution{3, 5, 24, 2, 6, true, true}, Convolution{2, 40, 16, 9, 16, true, true},
                               Convolution{1, 20, 8, 1, 8, true, false}, Convolution{2, 4, 8, 7, 8, false, true},
                               Convolution{1, 36, 7, 4, 1, true, true}, Convolution{70, 34, 8, 4, 8, true, true}}) {
    for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
      for (const int64_t start : {0, 1, 8}) {
        CAPTURE(c.C);
        CAPTURE(c.W);
        CAPTURE(std::string(name_of(dtype)));
        CAPTURE(start);
        const auto gradients = [&](DType in, Device device) {
          const auto values = [&](const Shape& shape, uint64_t seed) {
            return random_uniform(shape, seed).to(dtype).to(in).to(device);
          };
          const auto slice_of = [&](uint64_t seed) {
            const Tensor wide = values({c.B, c.L, c.C + 8}, seed);
            return wide.view({c.B, c.L, c.C}, wide.strides(), start);
          };
          Tensors leaves{slice_of(1), values({c.filters, c.W}, 2), c.bias ? values({c.C}, 3) : Tensor(),
                         c.initial ? values({c.B, c.W - 1, c.C}, 4) : Tensor()};
          for (Tensor& leaf : leaves)
            if (leaf.defined()) leaf = leaf.detach().set_requires_grad();
          const Tensor y = conv1d_causal(leaves[0], leaves[1], leaves[2], leaves[3]);
          y.backward(slice_of(5));
          Tensors results{y.detach()};
          for (const Tensor& leaf : leaves)
            if (leaf.defined()) results.push_back(leaf.grad());
          return results;
        };
        const Tensors expected = gradients(DType::f64, {}), got = gradients(dtype, kGpu);
        for (size_t i = 0; i < expected.size(); ++i) {
          CAPTURE(i);
          CHECK(difference(got[i].to(Device{}), expected[i], tolerance(dtype)) == "");
        }
      }
    }
  }
}

TEST_CASE("gpu packs: rows that lie apart are copied and added whole" * doctest::skip(no_gpu())) {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16, DType::i32, DType::boolean}) {
    for (const DType other : {DType::f32, DType::f64, DType::bf16}) {
      for (const int64_t width : {1, 8, 16, 24, 25}) {
        for (const int64_t start : {0, 1, 16}) {
          const Tensor host = random_uniform({5, 48}, 3, -3, 3).to(dtype);
          const auto part = [&](const Tensor& t) { return t.view({5, width}, {48, 1}, start); };
          const Tensor target = zeros({5, 48}, other, kGpu), expected = zeros({5, 48}, other);
          part(target).copy_from(part(host.to(kGpu)));
          part(expected).copy_from(part(host));
          CHECK(same_bits(target.to(Device{}), expected));
          if (dtype != other || dtype == DType::bf16) continue;
          backend(kGpu).accumulate(part(target).region(), part(host.to(kGpu)).region());
          backend({}).accumulate(part(expected).region(), part(host).region());
          CHECK(same_bits(target.to(Device{}), expected));
        }
      }
    }
  }
}

TEST_CASE("gpu packs: a fill stays inside of its region" * doctest::skip(no_gpu())) {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16, DType::i64, DType::boolean}) {
    for (const int64_t n : {1, 7, 16, 33}) {
      for (const int64_t start : {0, 1, 16}) {
        const Tensor target = zeros({3, 64}, dtype, kGpu), expected = zeros({3, 64}, dtype);
        target.view({3, n}, {64, 1}, start).fill(1);
        expected.view({3, n}, {64, 1}, start).fill(1);
        CHECK(same_bits(target.to(Device{}), expected));
      }
    }
  }
}

TEST_CASE("gpu packs: the norm of tensors at all places" * doctest::skip(no_gpu())) {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    for (const int64_t n : {1, 5, 8, 1023, 16384, 16391}) {
      const Tensor host = random_uniform({n}, 4).to(dtype);
      const Tensor expected = global_norm(Tensors{host.to(DType::f64)});
      for (const int64_t offset : {0, 1}) {
        const Tensors there{at_offset(host, offset)};
        CHECK(difference(global_norm(there).to(Device{}), expected, 1e-12) == "");
      }
    }
  }
}

TEST_CASE("gpu packs: an AdamW step on tensors at all places" * doctest::skip(no_gpu())) {
  const NoGrad no_grad;
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    for (const int64_t n : {1, 5, 8, 1023, 16391}) {
      Tensors host;
      for (uint64_t i = 0; i < 4; ++i) host.push_back(random_uniform({n}, i, 0.1, 1).to(dtype));
      const auto step = [](const Tensors& t) {
        const Tensor hyper = from_values({0.1, 0.19, 0.002, 0.5}, {4}, t[0].device());
        const AdamWRule rule{.weight_decay = 0.1};
        adamw_step({&t[0], 1}, {&t[1], 1}, {&t[2], 1}, {&t[3], 1}, {&rule, 1}, hyper);
      };
      Tensors expected;
      for (const Tensor& t : host) expected.push_back(t.to(DType::f64).clone());
      step(expected);
      for (size_t misplaced = 0; misplaced <= 4; ++misplaced) {  // one of them, or none
        Tensors there;
        for (size_t i = 0; i < 4; ++i) there.push_back(at_offset(host[i], i == misplaced ? 1 : 0));
        step(there);
        for (size_t i = 0; i < 4; ++i) CHECK(difference(there[i].to(Device{}), expected[i], tolerance(dtype)) == "");
      }
    }
  }
}

}  // namespace margay::test
