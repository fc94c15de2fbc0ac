#include <doctest/doctest.h>

#include <memory>
#include <vector>

#include "engine/error.h"
#include "tests/engine/tape.h"

namespace margay::test {
namespace {

using Values = std::vector<double>;

Values grad_of(const Tensor& tensor) { return tensor.grad().defined() ? tensor.grad().to_vector<double>() : Values{}; }

}  // namespace

TEST_CASE("hooks see the complete gradient, of leaves and of results") {
  Tensor x = tape::leaf({1, 2});
  Tensor y = tape::scale(x, 3);
  std::vector<Values> seen_y, seen_x;
  y.register_hook([&](const Tensor& gradient) {
    CHECK_FALSE(grad_enabled());
    seen_y.push_back(gradient.to_vector<double>());
    return Tensor();
  });
  x.register_hook([&](const Tensor& gradient) {
    seen_x.push_back(gradient.to_vector<double>());
    return Tensor();
  });
  tape::sum(tape::add(tape::add(y, y), x)).backward();
  CHECK(seen_y == std::vector<Values>{{2, 2}});
  CHECK(seen_x == std::vector<Values>{{7, 7}});
  CHECK(grad_of(x) == Values{7, 7});
  CHECK_THROWS_AS(zeros({1}).register_hook([](const Tensor& gradient) { return gradient; }), OpError);
}

TEST_CASE("a hook may replace the gradient") {
  Tensor x = tape::leaf({1, 2});
  Tensor y = tape::scale(x, 3);
  const Tensor kept = from_values({10.0, 20.0}, {2});
  y.register_hook([&](const Tensor&) { return kept; });
  y.register_hook([&](const Tensor& gradient) { return tape::scale(gradient, 2); });  // sees what the first returned
  x.register_hook([](const Tensor& gradient) { return gradient.view({2}, {-1}, 1); });
  tape::sum(y).backward({}, true);
  CHECK(grad_of(x) == Values{120, 60});
  tape::sum(y).backward();
  CHECK(grad_of(x) == Values{240, 120});
  CHECK(kept.to_vector<double>() == Values{10, 20});
}

TEST_CASE("a replacement of another shape or dtype is refused") {
  for (const bool on_leaf : {false, true}) {
    for (const Tensor& wrong : {zeros({3}, DType::f64), zeros({2}, DType::f32), zeros({1, 2}, DType::f64)}) {
      Tensor x = tape::leaf({1, 2});
      Tensor y = tape::scale(x, 3);
      (on_leaf ? x : y).register_hook([wrong](const Tensor&) { return wrong; });
      CHECK_THROWS_AS(tape::sum(y).backward(), OpError);
      CHECK_FALSE(x.grad().defined());
    }
  }
}

TEST_CASE("a hook may register another one, for the next time") {
  Tensor x = tape::leaf({1});
  int second = 0;
  x.register_hook([&](const Tensor&) {
    for (int i = 0; i < 10; ++i) {
      x.register_hook([&second](const Tensor&) {
        ++second;
        return Tensor();
      });
    }
    return Tensor();
  });
  tape::scale(x, 2).backward();
  CHECK(second == 0);
  Tensor y = tape::scale(x, 2);
  y.backward();
  CHECK(second == 10);
}

TEST_CASE("results keep their gradient on request, after their hooks") {
  Tensor x = tape::leaf({1, 2});
  Tensor y = tape::scale(x, 3), z = tape::multiply(y, y);
  y.retain_grad();
  y.retain_grad();  // once is enough
  z.retain_grad();
  x.retain_grad();  // does nothing: leaves do so anyway
  y.register_hook([](const Tensor& gradient) { return tape::scale(gradient, 10); });
  const Tensor loss = tape::sum(z);
  loss.backward({}, true);
  CHECK(grad_of(z) == Values{1, 1});
  CHECK(grad_of(y) == Values{60, 120});
  CHECK(grad_of(x) == Values{180, 360});
  loss.backward();
  CHECK(grad_of(z) == Values{2, 2});  // gathered, as in leaves
  CHECK(grad_of(y) == Values{120, 240});
  CHECK(z.grad().is_contiguous());
}

TEST_CASE("a retained gradient is a tensor of its own") {
  Tensor x = tape::leaf({1, 2});
  Tensor y = tape::scale(x, 1), z = tape::add(y, y);
  z.retain_grad();
  z.backward(from_values({1.0, 2.0}, {2}));
  z.grad().fill(100);
  CHECK(grad_of(x) == Values{2, 4});
}

TEST_CASE("hooks do not outlive the graph of their tensor") {
  const auto token = std::make_shared<int>(1);
  {
    const Tensor x = tape::leaf({1});
    Tensor y = tape::scale(x, 2);
    y.register_hook([token](const Tensor&) { return Tensor(); });
    y.retain_grad();
    CHECK(token.use_count() == 2);
  }
  CHECK(token.use_count() == 1);
}

}  // namespace margay::test
