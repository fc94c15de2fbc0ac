// ssd against its recurrence in plain f64 loops, at every length and chunk size, gradients of f32 against f64, and what
// the op table cannot express: causality to the bit, parts of a sequence, strong decays, and what is refused.

#include "ops/ssd.h"

#include <doctest/doctest.h>

#include <cmath>

#include "engine/parallel.h"
#include "ops/view.h"
#include "tests/support/compare.h"
#include "tests/support/naive.h"
#include "tests/support/op_error.h"

namespace margay::test {
namespace {

struct Case {
  int64_t batch, length, heads, head_dim, states, chunk;
  double fastest = -1;  // of the rates
};

Ssd inputs_of(const Case& c, DType dtype) {
  // The [B,L,..] arguments are slices of wider buffers.
  const auto slice_of = [&](int64_t width, uint64_t seed, double low = -1, double high = 1) {
    const Tensor wide = random_uniform({c.batch, c.length, width + 5}, seed, low, high, dtype);
    return wide.view({c.batch, c.length, width}, wide.strides(), 3);
  };
  return {slice_of(c.heads * c.head_dim, 1),
          slice_of(c.heads, 2, 0, 0.7),
          random_uniform({c.heads}, 3, c.fastest, -0.01, dtype),
          slice_of(c.states, 4),
          slice_of(c.states, 5),
          random_uniform({c.heads}, 6, -1, 1, dtype),
          random_uniform({c.batch, c.heads, c.states, c.head_dim}, 7, -1, 1, dtype),
          c.chunk};
}

struct Expected {
  Elements y, state;
};

// The recurrence, token by token.
Expected reference(const Case& c, const Ssd& in) {
  const Elements x(in.x), step(in.step), A(in.A), B(in.B), C(in.C), D(in.D);
  Expected result{Elements(in.x.shape()), Elements(in.initial)};
  for_each_index(in.x.shape(), [&](const Index& at) {
    const int64_t b = at[0], t = at[1], head = at[2] / c.head_dim, p = at[2] % c.head_dim;
    const double dt = step({b, t, head});
    double sum = D({head}) * x(at);
    for (int64_t n = 0; n < c.states; ++n) {
      double& h = result.state({b, head, n, p});
      h = std::exp(dt * A({head})) * h + dt * B({b, t, n}) * x(at);
      sum += C({b, t, n}) * h;
    }
    result.y(at) = sum;
  });
  return result;
}

// {y, final states} and all gradients under random cotangents.
Tensors run(Ssd in) {
  const std::initializer_list<Tensor*> arguments{&in.x, &in.step, &in.A, &in.B, &in.C, &in.D, &in.initial};
  for (Tensor* tensor : arguments) *tensor = tensor->detach().set_requires_grad();
  const Tensors results = ssd(in);
  const DType dtype = in.x.dtype();
  results[0].backward(random_uniform(results[0].shape(), 50, -1, 1, dtype), true);
  results[1].backward(random_uniform(results[1].shape(), 51, -1, 1, dtype));
  Tensors all{results[0].detach(), results[1].detach()};
  for (const Tensor* tensor : arguments) all.push_back(tensor->grad());
  return all;
}

Ssd part_of(const Ssd& in, int64_t begin, int64_t end, const Tensor& initial) {
  Ssd part = in;
  for (Tensor* tensor : {&part.x, &part.step, &part.B, &part.C}) *tensor = slice(*tensor, 1, begin, end);
  part.initial = initial;
  return part;
}

}  // namespace

TEST_CASE("ssd equals its recurrence") {
  const auto check = [](const Case& c) {
    CAPTURE(c.length);
    CAPTURE(c.chunk);
    CAPTURE(c.fastest);
    const Expected expected = reference(c, inputs_of(c, DType::f64));
    for (const DType dtype : {DType::f64, DType::f32}) {
      const Tensors got = ssd(inputs_of(c, dtype));
      const double tolerance = dtype == DType::f64 ? 1e-12 : 1e-5;
      CHECK(difference_relative_to_max(got[0], expected.y.to_tensor(DType::f64), tolerance) == "");
      CHECK(difference_relative_to_max(got[1], expected.state.to_tensor(DType::f64), tolerance) == "");
    }
  };
  for (const int64_t length : {1, 2, 3, 7, 64, 1000})
    for (const int64_t chunk : {1, 16, 64, 256}) check({2, length, 2, 5, 4, chunk});
  for (const int64_t head_dim : {1, 15, 33})
    for (const int64_t states : {1, 16, 40}) check({2, 20, 3, head_dim, states, 8});
  check({1, 300, 2, 3, 4, 256, -30});  // decays beyond the range of f32 within a chunk
  check({20, 5, 3, 4, 4, 2});
}

TEST_CASE("ssd: gradients of f32 agree with f64, and do not depend on the chunk") {
  Case c{2, 150, 3, 20, 17, 150};
  const Tensors expected = run(inputs_of(c, DType::f64));
  for (const int64_t chunk : {1, 37, 64, 150}) {
    c.chunk = chunk;
    for (const DType dtype : {DType::f64, DType::f32}) {
      const Tensors got = run(inputs_of(c, dtype));
      for (size_t i = 0; i < got.size(); ++i) {
        CAPTURE(i);
        CHECK(difference_relative_to_max(got[i], expected[i], dtype == DType::f64 ? 1e-11 : 3e-5) == "");
      }
    }
  }
}

TEST_CASE("ssd: a token changes no bit before it") {
  const Case c{2, 80, 2, 9, 5, 50};
  const Tensor before = ssd(inputs_of(c, DType::f32))[0];
  for (const int64_t t : {1, 7, 49, 50, 79}) {
    const Ssd in = inputs_of(c, DType::f32);
    for (const Tensor& tensor : {in.x, in.step, in.B, in.C}) slice(tensor, 1, t, c.length).fill(3);
    const Tensor after = ssd(in)[0];
    CHECK(same_bits(slice(after, 1, 0, t), slice(before, 1, 0, t)));
    CHECK_FALSE(same_bits(slice(after, 1, t, t + 1), slice(before, 1, t, t + 1)));
  }
}

TEST_CASE("ssd of a sequence in parts gives what the whole gives") {
  const Case c{2, 90, 2, 7, 6, 32};
  const Ssd in = inputs_of(c, DType::f64);
  const Tensors whole = ssd(in);
  Tensor state = in.initial;
  for (int64_t begin = 0, end; begin < c.length; begin = end) {
    end = std::min(c.length, begin + 1 + begin % 40);
    const Tensors part = ssd(part_of(in, begin, end, state));
    CHECK(difference(part[0], slice(whole[0], 1, begin, end), 1e-12) == "");
    state = part[1];
  }
  CHECK(difference(state, whole[1], 1e-12) == "");
}

TEST_CASE("ssd: the number of threads does not change a bit") {
  const int before = num_threads();
  for (const Case& c : {Case{20, 70, 2, 16, 5, 32}, Case{1, 130, 20, 8, 16, 64}}) {
    const Ssd in = inputs_of(c, DType::f32);
    set_num_threads(1);
    const Tensors expected = run(in);
    for (const int threads : {2, 3}) {
      set_num_threads(threads);
      const Tensors got = run(in);
      for (size_t i = 0; i < got.size(); ++i) CHECK(same_bits(got[i], expected[i]));
    }
  }
  set_num_threads(before);
}

TEST_CASE("ssd says what is wrong with its arguments") {
  const auto t = [](const Shape& shape, DType dtype = DType::f32) { return zeros(shape, dtype); };
  const Ssd good{t({2, 5, 6}), t({2, 5, 3}), t({3}), t({2, 5, 4}), t({2, 5, 4}), t({3})};
  const auto error = [&](const auto& change) {
    Ssd in = good;
    change(in);
    return op_error([&] { ssd(in); });
  };
  CHECK(error([](Ssd&) {}) == "");
  CHECK(error([&](Ssd& in) { in.x = {}; }) == "ssd: x must be of a float dtype, got none");
  CHECK(error([&](Ssd& in) { in.x = t({5, 6}); }) == "ssd: x must be [B,L,H*P], got f32[5,6]");
  CHECK(error([&](Ssd& in) { in.A = t({4}); }) ==
        "ssd: A must be [H], H dividing the last axis of x f32[2,5,6], got f32[4]");
  CHECK(error([&](Ssd& in) { in.B = t({2, 4, 4}); }) == "ssd: B must be [B,L,N] for x f32[2,5,6], got f32[2,4,4]");
  const std::string of = " for x f32[2,5,6], A f32[3] and B f32[2,5,4], got ";
  CHECK(error([&](Ssd& in) { in.step = t({2, 5, 6}); }) == "ssd: step must be [B,L,H]" + of + "f32[2,5,6]");
  CHECK(error([&](Ssd& in) { in.C = t({2, 5, 3}); }) == "ssd: C must be [B,L,N]" + of + "f32[2,5,3]");
  CHECK(error([&](Ssd& in) { in.D = t({6}); }) == "ssd: D must be [H]" + of + "f32[6]");
  CHECK(error([&](Ssd& in) {
          in.initial = t({2, 3, 2, 4});
        }) == "ssd: initial must be [B,H,N,P]" + of + "f32[2,3,2,4]");
  CHECK(error([&](Ssd& in) { in.chunk = 0; }) == "ssd: chunk must be at least 1, got 0");
  CHECK(error([&](Ssd& in) { in.C = t({2, 5, 4}, DType::f64); }) != "");
}

}  // namespace margay::test
