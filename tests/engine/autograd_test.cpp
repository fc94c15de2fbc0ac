#include "engine/autograd.h"

#include <doctest/doctest.h>

#include <limits>
#include <string>
#include <vector>

#include "engine/error.h"
#include "tests/engine/tape.h"

namespace margay::test {
namespace {

using Values = std::vector<double>;

Values grad_of(const Tensor& tensor) { return tensor.grad().defined() ? tensor.grad().to_vector<double>() : Values{}; }

}  // namespace

TEST_CASE("gradients add up where a tensor is used several times") {
  const Tensor x = tape::leaf({2, 3});
  const Tensor square = tape::multiply(x, x);  // one tensor as both inputs
  CHECK(Graph::node_of(square)->op() == "multiply");
  tape::sum(tape::add(tape::multiply(square, x), square)).backward();  // x^3 + x^2
  CHECK(grad_of(x) == Values{3 * 4 + 2 * 2, 3 * 9 + 2 * 3});

  const Tensor y = tape::leaf({5});
  tape::add(y, y).backward(from_values({1.0}, {1}));
  CHECK(grad_of(y) == Values{2});
}

TEST_CASE("a second backward adds to the gradients of the first") {
  const Tensor x = tape::leaf({2, 3});
  const Tensor loss = tape::sum(tape::multiply(x, x));
  loss.backward({}, true);
  const Tensor kept = x.grad();
  loss.backward({}, true);
  CHECK(grad_of(x) == Values{8, 12});
  CHECK(kept.to_vector<double>() == Values{4, 6});  // whoever held the old gradient keeps it
  x.grad();
  Tensor(x).zero_grad();
  CHECK_FALSE(x.grad().defined());
  loss.backward();
  CHECK(grad_of(x) == Values{4, 6});
}

TEST_CASE("an expanded cotangent is not added to in place") {
  const Tensor x = tape::leaf({1, 2, 3});
  const Tensor total = tape::sum(x);  // its VJP gives x a view of one element
  const Tensor other = tape::sum(tape::multiply(x, from_values({1.0, 10.0, 100.0}, {3})));
  for (const auto& [first, second] : {std::pair(total, other), std::pair(other, total)}) {
    Tensor(x).zero_grad();
    tape::add(first, second).backward({}, true);
    CHECK(grad_of(x) == Values{2, 11, 101});
  }
}

TEST_CASE("gradients of broadcast inputs are summed by the walk") {
  Tensor x = from_values({1.0, 2.0}, {1, 2});
  x.set_requires_grad();
  const Tensor y = tape::record("expand", x.view({3, 2}, {0, 1}).clone(), {x},
                                [](const VjpContext& context) { return Tensors{context.cotangent()}; });
  y.backward(from_values({1.0, 2.0, 3.0, 4.0, 5.0, 6.0}, {3, 2}));
  CHECK(x.grad().shape() == Shape{1, 2});
  CHECK(grad_of(x) == Values{9, 12});
}

TEST_CASE("backward needs a result, and a cotangent unless there is one element") {
  const Tensor x = tape::leaf({1, 2});
  CHECK_THROWS_AS(x.detach().backward(), OpError);
  CHECK_THROWS_AS(Tensor().backward(), OpError);
  const Tensor y = tape::scale(x, 2);
  CHECK_THROWS_AS(y.backward(), OpError);
  CHECK_THROWS_AS(y.backward(zeros({3}, DType::f64)), OpError);
  CHECK_THROWS_AS(y.backward(zeros({2}, DType::f32)), OpError);
  const Tensor seed = from_values({1.0, 10.0}, {2});
  y.backward(seed);
  CHECK(grad_of(x) == Values{2, 20});
  CHECK(seed.to_vector<double>() == Values{1, 10});
  const Tensor single = tape::leaf({3});
  single.backward();  // a leaf is its own result
  CHECK(grad_of(single) == Values{1});
}

TEST_CASE("what is not recorded") {
  const Tensor x = tape::leaf({1, 2});
  CHECK(x.is_leaf());
  CHECK(x.requires_grad());
  {
    const NoGrad no_grad;
    CHECK_FALSE(grad_enabled());
    CHECK_FALSE(tape::scale(x, 2).requires_grad());
    {
      const GradMode again(true);
      CHECK(tape::scale(x, 2).requires_grad());
    }
    CHECK_FALSE(grad_enabled());
  }
  CHECK(grad_enabled());
  const Tensor detached = x.detach();
  CHECK_FALSE(detached.requires_grad());
  CHECK_FALSE(tape::scale(detached, 2).requires_grad());
  const Tensor through = tape::multiply(tape::scale(x, 3).detach(), x);
  through.backward(from_values({1.0, 1.0}, {2}));
  CHECK(grad_of(x) == Values{3, 6});
}

TEST_CASE("leaves are of float dtypes") {
  CHECK_THROWS_AS(zeros({2}, DType::i32).set_requires_grad(), OpError);
  CHECK_THROWS_AS(zeros({2}, DType::boolean).set_requires_grad(), OpError);
  CHECK_NOTHROW(zeros({2}, DType::i32).set_requires_grad(false));
  CHECK_NOTHROW(zeros({2}, DType::bf16).set_requires_grad());
  Tensor y = tape::scale(tape::leaf({1}), 2);
  CHECK_THROWS_AS(y.set_requires_grad(), OpError);
  const Tensor x = tape::leaf({1, 2});
  CHECK_THROWS_AS(Tensor(x).set_grad(zeros({3}, DType::f64)), OpError);
  CHECK_THROWS_AS(Tensor(x).set_grad(zeros({2}, DType::f32)), OpError);
}

TEST_CASE("integer results are not on the tape") {
  const Tensor x = tape::leaf({1, 2});
  const Tensor outputs[] = {x.clone(), from_values<int32_t>({7}, {1})};
  Graph::record("two", outputs, std::span(&x, 1), [](const VjpContext& context) {
    CHECK_FALSE(context.cotangent(1).defined());
    return Tensors{context.cotangent(0)};
  });
  CHECK(outputs[0].requires_grad());
  CHECK_FALSE(outputs[1].requires_grad());
  outputs[0].backward(from_values({1.0, 2.0}, {2}));
  CHECK(grad_of(x) == Values{1, 2});
}

TEST_CASE("several results share one VJP call, and those that nothing used have no cotangent") {
  const Tensor x = tape::leaf({1, 2});
  int calls = 0;
  const auto two = [&] {
    std::vector<Tensor> outputs = {x.clone(), x.clone(), x.clone()};
    Graph::record("three", outputs, std::span(&x, 1), [&calls](const VjpContext& context) {
      ++calls;
      CHECK_FALSE(context.cotangent(2).defined());
      return Tensors{tape::add(context.cotangent(0), context.cotangent(1))};
    });
    return outputs;
  };
  const auto outputs = two();
  tape::sum(tape::add(tape::scale(outputs[0], 2), tape::scale(outputs[1], 5))).backward();
  CHECK(calls == 1);
  CHECK(grad_of(x) == Values{7, 7});
}

TEST_CASE("a VJP is told what is wanted, and may add to what is there") {
  const Tensor x = tape::leaf({1, 2}), fixed = from_values({3.0, 4.0}, {2});
  std::vector<bool> seen;
  bool had_destination = false;
  const auto into = [&](const Tensor& a, const Tensor& b) {
    return tape::record("into", a.clone(), {a, b}, [&](const VjpContext& context) {
      seen = {context.wanted(0), context.wanted(1)};
      const Tensor& destination = context.destination(0);
      had_destination = destination.defined();
      CHECK_FALSE(context.destination(1).defined());
      if (!had_destination) return Tensors{context.cotangent(), {}};
      for (int64_t i = 0; i < destination.numel(); ++i)
        destination.data<double>()[i] += context.cotangent().data<double>()[i];
      return Tensors{destination, zeros({9}, DType::f32)};  // what is not wanted is dropped unseen
    });
  };
  const Tensor early = into(x, fixed);  // walked last: finds the gradient of the other use
  const Tensor late = tape::scale(x, 10);
  tape::sum(tape::add(early, late)).backward();
  CHECK(seen == std::vector<bool>{true, false});
  CHECK(had_destination);
  CHECK(grad_of(x) == Values{11, 11});

  // A gradient that somebody else holds is no destination.
  Tensor(x).zero_grad();
  const Tensor first = into(x, fixed);
  const Tensor doubled = tape::add(x, x);
  tape::sum(tape::add(first, doubled)).backward();
  CHECK(grad_of(x) == Values{3, 3});
}

TEST_CASE("one tensor as two inputs gets one destination only") {
  const Tensor x = tape::leaf({1, 2});
  const Tensor y = tape::record("pair", x.clone(), {x, x}, [](const VjpContext& context) {
    CHECK(context.destination(0).defined());
    CHECK_FALSE(context.destination(1).defined());
    const Tensor& first = context.destination(0);
    for (int64_t i = 0; i < 2; ++i) first.data<double>()[i] += 1;
    return Tensors{first, from_values({10.0, 20.0}, {2})};
  });
  tape::sum(tape::add(y, tape::scale(x, 100))).backward();
  CHECK(grad_of(x) == Values{111, 121});
}

TEST_CASE("a result cannot be put on the tape twice") {
  const Tensor x = tape::leaf({1, 2});
  const auto same = [](const VjpContext& context) { return Tensors{context.cotangent()}; };
  CHECK_THROWS_AS(Graph::record("same", std::span(&x, 1), std::span(&x, 1), same), std::logic_error);
  const Tensor y = tape::scale(x, 2);
  CHECK_THROWS_AS(Graph::record("again", std::span(&y, 1), std::span(&x, 1), same), std::logic_error);
}

TEST_CASE("the gradient that a VJP returns is checked") {
  const auto with_gradient = [](const Tensors& gradients) {
    const Tensor x = tape::leaf({1, 2});
    const Tensor y =
        tape::record("wrong", x.clone(), {x}, [gradients](const VjpContext&) { return Tensors(gradients); });
    y.backward(from_values({1.0, 1.0}, {2}));
    return grad_of(x);
  };
  CHECK(with_gradient({ones({2}, DType::f64)}) == Values{1, 1});
  CHECK(with_gradient({Tensor()}).empty());
  CHECK(with_gradient({ones({3, 2}, DType::f64)}) == Values{3, 3});
  CHECK_THROWS_AS(with_gradient({ones({2}, DType::f32)}), std::logic_error);
  CHECK_THROWS_AS(with_gradient({ones({3}, DType::f64)}), std::logic_error);
  CHECK_THROWS_AS(with_gradient({ones({1}, DType::f64)}), std::logic_error);
  CHECK_THROWS_AS(with_gradient({ones({2}, DType::f64), Tensor()}), std::logic_error);
  CHECK_THROWS_AS(with_gradient({}), std::logic_error);
}

}  // namespace margay::test
