// landmark_pool against its definition, and what the op table cannot express: stretches give the bits of the whole, and
// what is refused.

#include "ops/landmark_pool.h"

#include <doctest/doctest.h>

#include "ops/view.h"
#include "tests/support/compare.h"
#include "tests/support/naive.h"
#include "tests/support/op_error.h"

namespace margay::test {
namespace {

// y and the gradients of sum(y dy), in plain loops.
Tensors reference(const Tensor& k_values, const Tensor& weight_values, const Tensor& dy_values, DType dtype) {
  const Elements k(k_values), weight(weight_values), dy(dy_values);
  const bool shared = weight_values.ndim() == 1;
  const int64_t W = weight_values.dim(-1);
  Elements y(dy_values.shape()), dk(k_values.shape()), dweight(weight_values.shape());
  for_each_index(k_values.shape(), [&](const Index& at) {
    const int64_t b = at[0], h = at[1], t = at[2], d = at[3], m = t / W;
    if (m >= dy_values.dim(2)) return;
    const Index tap = shared ? Index{W - 1 - t % W} : Index{h, W - 1 - t % W};
    y({b, h, m, d}) += weight(tap) * k(at);
    dk(at) += weight(tap) * dy({b, h, m, d});
    dweight(tap) += k(at) * dy({b, h, m, d});
  });
  return {y.to_tensor(dtype), dk.to_tensor(dtype), dweight.to_tensor(dtype)};
}

}  // namespace

TEST_CASE("landmark_pool equals its definition, and so do its gradients") {
  for (const int64_t L : {1, 2, 3, 7, 64, 1000}) {
    for (const int64_t W : {1, 3, 16}) {
      for (const bool shared : {true, false}) {
        CAPTURE(L);
        CAPTURE(W);
        const int64_t H = 2, dh = 5;
        const Tensor dy64 = random_uniform({1, H, L / W, dh}, 3);
        for (const DType dtype : {DType::f64, DType::f32}) {
          // Heads of a packed [B,L,2,H,dh] buffer: not contiguous.
          const Tensor packed = random_uniform({1, L, 2, H, dh}, 1, -1, 1, dtype);
          Tensor k = packed.view({1, H, L, dh}, {L * 2 * H * dh, dh, 2 * H * dh, 1}, H * dh);
          Tensor weight = random_uniform(shared ? Shape{W} : Shape{H, W}, 2, -1, 1, dtype);
          const Tensor dy = dy64.to(dtype);
          const Tensors expected = reference(k, weight, dy, dtype);
          k.set_requires_grad();
          weight.set_requires_grad();
          const Tensor y = landmark_pool(k, weight);
          y.backward(dy);
          const double tolerance = dtype == DType::f64 ? 1e-13 : 1e-5;
          CHECK(difference(y, expected[0], tolerance) == "");
          CHECK(difference(k.grad(), expected[1], tolerance) == "");
          CHECK(difference(weight.grad(), expected[2], 10 * tolerance) == "");
        }
      }
    }
  }
}

TEST_CASE("landmark_pool of one block after the other gives the bits of the whole") {
  const Tensor k = random_uniform({2, 3, 40, 20}, 1, -1, 1, DType::f32),
               weight = random_uniform({3, 8}, 2).to(DType::f32);
  const Tensor whole = landmark_pool(k, weight);
  for (int64_t m = 0; m < 5; ++m)
    CHECK(same_bits(landmark_pool(slice(k, 2, 8 * m, 8 * m + 8), weight).contiguous(),
                    slice(whole, 2, m, m + 1).contiguous()));
}

TEST_CASE("landmark_pool says what is wrong with its arguments") {
  const Tensor k = zeros({2, 3, 8, 4}), weight = zeros({4});
  CHECK(op_error([&] {
          landmark_pool(zeros({3, 8, 4}), weight);
        }) == "landmark_pool: k must be [B,H,L,dh], got f32[3,8,4]");
  CHECK(op_error([&] {
          landmark_pool(k, zeros({2, 4}));
        }) == "landmark_pool: weight must be [W] or [H,W], W > 0, for k f32[2,3,8,4], got f32[2,4]");
  CHECK(op_error([&] { landmark_pool(k, zeros({0})); }) != "");
  CHECK(op_error([&] { landmark_pool(k, zeros({4}, DType::f64)); }) != "");
  CHECK(op_error([&] { landmark_pool({}, weight); }) != "");
}

}  // namespace margay::test
