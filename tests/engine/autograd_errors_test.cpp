#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/error.h"
#include "ops/rms_norm.h"
#include "tests/engine/tape.h"

namespace margay::test {
namespace {

using Values = std::vector<double>;

Values grad_of(const Tensor& tensor) { return tensor.grad().defined() ? tensor.grad().to_vector<double>() : Values{}; }

/// What `call` threw.
template <class Error, class Call>
std::string message_of(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("a graph can be walked once, or as often as wanted if it is retained") {
  const Tensor x = tape::leaf({2});
  const Tensor y = tape::multiply(x, x);
  y.backward({}, true);
  y.backward({}, true);
  y.backward();
  CHECK(grad_of(x) == Values{12});
  const std::string message = message_of<std::logic_error>([&] { y.backward(); });
  CHECK(contains(message, "multiply"));
  CHECK(contains(message, "retain_graph"));
  CHECK(grad_of(x) == Values{12});
}

TEST_CASE("backward frees what the ops saved") {
  const Tensor x = tape::leaf({2, 3});
  Tensor loss;
  std::weak_ptr<Storage> saved;
  {
    const Tensor square = tape::multiply(x, x);
    saved = square.storage();
    loss = tape::sum(tape::multiply(square, x));
  }
  CHECK_FALSE(saved.expired());
  loss.backward({}, true);
  CHECK_FALSE(saved.expired());
  loss.backward();
  CHECK(saved.expired());
}

TEST_CASE("a saved tensor that was changed in place is found out") {
  const auto change_and_walk = [](const auto& change) {
    const Tensor x = tape::leaf({1, 2}), w = from_values({3.0, 4.0}, {2});
    const Tensor loss = tape::sum(tape::multiply(x, w));
    change(w);
    loss.backward();
    return grad_of(x);
  };
  CHECK(change_and_walk([](const Tensor&) {}) == Values{3, 4});
  const auto message = [&](const auto& change) {
    return message_of<std::logic_error>([&] { change_and_walk(change); });
  };
  CHECK(contains(message([](const Tensor& w) { w.fill(0); }), "changed in place"));
  CHECK(contains(message([](const Tensor& w) { w.copy_from(zeros({2}, DType::f64)); }), "f64[2]"));
  CHECK(contains(message([](const Tensor& w) { w.view({1}, {1}, 1).fill(0); }), "changed in place"));
  CHECK(contains(message([](const Tensor& w) { w.detach().fill(0); }), "changed in place"));
}

TEST_CASE("an exception in the middle of backward leaves gradients alone and the graph usable") {
  const Tensor x = tape::leaf({1, 2}), w = tape::leaf({5, 6});
  bool broken = true;
  const Tensor a = tape::scale(x, 2);
  const Tensor b = tape::record("fragile", a.clone(), {a}, [&broken](const VjpContext& context) {
    if (broken) throw ResourceError("no more memory");
    return Tensors{context.cotangent()};
  });
  // The walk meets w first, then the fragile op, with a cotangent waiting for x.
  const Tensor loss = tape::sum(tape::add(tape::multiply(b, w), tape::scale(x, 100)));
  for (int i = 0; i < 2; ++i) {
    CHECK_THROWS_AS(loss.backward({}, true), ResourceError);
    CHECK_FALSE(x.grad().defined());
    CHECK_FALSE(w.grad().defined());
  }
  broken = false;
  loss.backward({}, true);
  CHECK(grad_of(x) == Values{110, 112});
  CHECK(grad_of(w) == Values{2, 4});
  broken = true;
  CHECK_THROWS_AS(loss.backward(), ResourceError);  // frees what it walked
  CHECK(grad_of(x) == Values{110, 112});
  broken = false;
  CHECK_THROWS_AS(loss.backward(), std::logic_error);
}

TEST_CASE("a hook that throws leaves every gradient alone") {
  Tensor first = tape::leaf({1}), second = tape::leaf({2}), third = tape::leaf({3});
  bool broken = true;
  Tensor middle = tape::multiply(first, second);
  middle.retain_grad();
  const Tensor loss = tape::multiply(middle, third);
  for (Tensor* leaf : {&first, &second, &third}) {
    leaf->register_hook([&broken](const Tensor&) {
      if (broken) throw std::runtime_error("hook");
      return Tensor();
    });
  }
  CHECK_THROWS_AS(loss.backward({}, true), std::runtime_error);
  for (const Tensor& tensor : {first, second, third, middle}) CHECK_FALSE(tensor.grad().defined());
  broken = false;
  loss.backward();
  CHECK(grad_of(first) == Values{6});
  CHECK(grad_of(second) == Values{3});
  CHECK(grad_of(third) == Values{2});
  CHECK(grad_of(middle) == Values{3});
}

TEST_CASE("a VJP may run a walk of its own, as recomputation does") {
  const Tensor x = tape::leaf({2}), w = tape::leaf({3});
  const Tensor y = tape::record("recompute", tape::scale(x, 6).detach(), {x}, [x, w](const VjpContext& context) {
    const GradMode record(true);
    Tensor again = x.detach();
    again.set_requires_grad();
    tape::scale(tape::multiply(again, w), 2).backward(context.cotangent());
    return Tensors{again.grad()};
  });
  tape::add(y, tape::multiply(w, w)).backward();  // w is also a leaf of the outer graph
  CHECK(grad_of(x) == Values{6});
  CHECK(grad_of(w) == Values{4 + 6});
}

TEST_CASE("a walk inside a walk over the same ops is refused") {
  Tensor x = tape::leaf({2});
  const Tensor shared = tape::scale(x, 3);
  const Tensor again = tape::scale(shared, 5);
  Tensor late = tape::scale(shared, 7);
  late.register_hook([&](const Tensor&) {
    again.backward({}, true);  // `shared` waits in the outer walk already
    return Tensor();
  });
  const Tensor loss = tape::add(late, tape::scale(shared, 11));
  CHECK_THROWS_AS(loss.backward({}, true), std::logic_error);
  CHECK_FALSE(x.grad().defined());
}

TEST_CASE("anomaly mode names the op of the first bad number") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const Tensor x = from_values({1.0, nan}, {1, 2}), w = from_values({1.0, 1.0}, {2});
  CHECK_NOTHROW(rms_norm(x, w));
  CHECK_FALSE(AnomalyMode::enabled());
  {
    const AnomalyMode anomaly;
    CHECK(AnomalyMode::enabled());
    CHECK(message_of<DivergedError>([&] { rms_norm(x, w); }) == "rms_norm: result f64[1,2] holds NaN or infinity");
  }
  const auto walk = [](double gradient) {
    const Tensor leaf = tape::leaf({1, 2});
    const Tensor bad = tape::record("bad", leaf.clone(), {leaf},
                                    [gradient](const VjpContext&) { return Tensors{full({2}, gradient, DType::f64)}; });
    tape::sum(tape::scale(bad, 2)).backward();
    return grad_of(leaf);
  };
  CHECK(std::isnan(walk(nan)[0]));
  const AnomalyMode anomaly;
  CHECK(walk(1) == Values{1, 1});
  CHECK(message_of<DivergedError>([&] { walk(nan); }) == "bad: gradient of input 0 f64[2] holds NaN or infinity");
  CHECK(contains(message_of<DivergedError>([&] { walk(-1 / 0.0); }), "bad: gradient"));
}

TEST_CASE("anomaly mode looks only at gradients that are wanted") {
  const Tensor x = tape::leaf({1}), fixed = from_values({1.0}, {1});
  const Tensor y = tape::record("op", x.clone(), {x, fixed}, [](const VjpContext& context) {
    return Tensors{context.cotangent(), full({1}, std::numeric_limits<double>::infinity(), DType::f64)};
  });
  const AnomalyMode anomaly;
  CHECK_NOTHROW(y.backward());
}

}  // namespace margay::test
