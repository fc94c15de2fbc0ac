#include "ops/grad_norm.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "engine/error.h"
#include "tests/support/compare.h"

namespace margay::test {

TEST_CASE("global_norm equals the plain sum of squares") {
  for (const DType dtype : {DType::f32, DType::f64}) {
    const Tensors tensors{random_uniform({3, 5}, 1, -1, 1, dtype),
                          {},
                          random_uniform({}, 2, -1, 1, dtype),
                          random_uniform({0, 3}, 3, -1, 1, dtype),
                          random_uniform({40007}, 4, -1, 1, dtype)};
    double sum = 0;
    for (const Tensor& tensor : tensors)
      if (tensor.defined())
        for (const double x : tensor.to(DType::f64).to_vector<double>()) sum += x * x;
    const Tensor norm = global_norm(tensors);
    CHECK(norm.dtype() == DType::f64);
    CHECK(norm.item() == doctest::Approx(std::sqrt(sum)).epsilon(1e-13));
  }
}

TEST_CASE("global_norm: views, nothing at all, and values whose squares overflow f32") {
  const Tensor matrix = random_uniform({4, 6}, 1);
  const Tensor view = matrix.view({6, 2}, {1, 12});
  CHECK(global_norm(Tensors{view}).item() == doctest::Approx(global_norm(Tensors{view.clone()}).item()).epsilon(1e-15));
  CHECK(global_norm({}).item() == 0);
  CHECK(global_norm(Tensors{Tensor(), zeros({0})}).item() == 0);
  CHECK(global_norm(Tensors{full({4}, 3e38)}).item() == doctest::Approx(6e38));
  CHECK(std::isnan(global_norm(Tensors{full({1}, std::numeric_limits<double>::quiet_NaN())}).item()));
}

TEST_CASE("clip_coefficient brings the norm down to its limit, and never up") {
  const auto coefficient = [](double norm, double limit) {
    return clip_coefficient(full({}, norm, DType::f64), limit).item();
  };
  CHECK(coefficient(4, 1) == doctest::Approx(1 / (4 + 1e-6)).epsilon(1e-15));
  CHECK(coefficient(0.5, 1) == 1);
  CHECK(coefficient(0, 1) == 1);
  CHECK(coefficient(100, 0) == 1);
}

TEST_CASE("clip_coefficient is NaN where the norm or the loss is not finite") {
  constexpr double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  for (const Device device : {Device{}, Device{DeviceType::cuda, 0}}) {
    if (device != Device{} && cuda_device_count() == 0) continue;
    const auto scalar = [&](double value) { return full({}, value, DType::f64, device); };
    for (const double limit : {0.0, 1.0}) {
      for (const double bad : {nan, infinity, -infinity}) {
        if (bad != -infinity) CHECK(std::isnan(clip_coefficient(scalar(bad), limit).item()));
        CHECK(std::isnan(clip_coefficient(scalar(0.5), limit, scalar(bad)).item()));
      }
      CHECK(clip_coefficient(scalar(0.5), limit, scalar(-3)).item() == 1);
    }
  }
}

TEST_CASE("global_norm, clip_coefficient: errors name the argument") {
  CHECK_THROWS_WITH_AS(global_norm(Tensors{zeros({2}), zeros({2}, DType::f64)}),
                       "global_norm: tensors must be of the dtype and device of the first f32[2], got f64[2]", OpError);
  CHECK_THROWS_AS(global_norm(Tensors{zeros({2}, DType::i32)}), OpError);
  CHECK_THROWS_WITH_AS(clip_coefficient(zeros({}), 1), "clip_coefficient: norm must be f64[], got f32[]", OpError);
  CHECK_THROWS_WITH_AS(clip_coefficient(zeros({}, DType::f64), 1, zeros({1}, DType::f64)),
                       "clip_coefficient: loss must be f64[], got f64[1]", OpError);
  CHECK_THROWS_AS(clip_coefficient(zeros({}, DType::f64), 1, zeros({})), OpError);
  CHECK_THROWS_WITH_AS(clip_coefficient(zeros({}, DType::f64), -1),
                       "clip_coefficient: max_norm must be 0 (no clipping) or more, got -1", OpError);
}

}  // namespace margay::test
